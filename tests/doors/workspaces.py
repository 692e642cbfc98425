"""Workspaces like a fresh clone's, with parameters cut down so that a pipeline takes minutes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]

# What is cut, by dotted key; everything else is the file's own.
SMALL_WORLD: dict[str, Any] = {
    "data.world.reviews": 600,
    "data.world.prompts": 80,
    "data.world.unlabelled": 20,
    "data.world.out_of_domain": 8,
    "data.eval_fraction": 0.2,
    "model.scratch.vocabulary": 512,
    "model.scratch.hidden": 64,
    "model.scratch.layers": 2,
    "model.scratch.heads": 2,
    "sft.threads": 1,
    "sft.epochs": 6.0,
    "sft.batch_size": 8,
    "sft.warmup_steps": 5,
    "pairs.threads": 1,
    "reference.threads": 1,
    "dpo.grid.beta": [0.1],
    "ppo.grid.beta": [0.1],
    "ppo.training.iterations": 2,
    "ppo.training.batch_size": 16,
    "ppo.training.critic_warmup": 0,
    "optimum.samples": 32,
    "best_of_n.grid.n": [],
    "sample.temperatures": [0.0, 1.0],
    "sample.seeds": [0],
    "sample.prompts": 12,
    "sample.out_of_domain": 4,
    "benchmark.engine": "hf",
    "benchmark.limit": 12,
    "compare.bootstrap": 200,
    "compare.report_samples": 2,
}
SMALL_HH: dict[str, Any] = {
    "run.jobs": 2,
    "data.max_rows": 160,
    "model.scratch.vocabulary": 512,
    "model.scratch.hidden": 64,
    "model.scratch.layers": 2,
    "model.scratch.heads": 2,
    "sft.threads": 1,
    "sft.epochs": 1.0,
    "sft.batch_size": 8,
    "pairs.threads": 1,
    "reference.threads": 1,
    "dpo.grid.beta": [0.1],
    "dpo.training.epochs": 1.0,
    "reward.epochs": 1.0,
    "ppo.grid.beta": [0.1],
    "ppo.training.iterations": 2,
    "ppo.training.batch_size": 8,
    "ppo.training.micro_batch_size": 8,
    "ppo.training.critic_warmup": 0,
    "ppo.training.max_new_tokens": 24,
    "sample.engine": "hf",
    "sample.temperatures": [1.0],
    "sample.seeds": [0],
    "sample.prompts": 8,
    "sample.max_new_tokens": 24,
    "benchmark.engine": "hf",
    "benchmark.limit": 8,
    "compare.bootstrap": 200,
    "compare.report_samples": 2,
}


def make(folder: Path, changes: dict[str, Any], preset: str = "params.yaml") -> Path:
    """Copy what git tracks (or would) into `folder`, cut the parameters down, commit."""
    names = run(["git", "ls-files", "-co", "--exclude-standard"], REPOSITORY).stdout.splitlines()
    for name in names:
        if name.split("/")[0] in ("tests", "docs", "dvc.lock") or not (REPOSITORY / name).is_file():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    change(folder, changes, preset)
    run(["git", "init", "-q"], folder)
    run(["git", "add", "-A"], folder)
    who = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    run(["git", *who, "commit", "-qm", "Start"], folder)
    return folder


def change(folder: Path, changes: dict[str, Any], source: str = "params.yaml") -> None:
    """Write params.yaml from `source` with some values changed."""
    values = yaml.safe_load((folder / source).read_text())
    for key, value in changes.items():
        section = values
        *path, last = key.split(".")
        for part in path:
            section = section[part]
        if last not in section:
            raise KeyError(key)
        section[last] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(values))


def environment(**more: str) -> dict[str, str]:
    """A user's environment with the virtual environment first on PATH, and one thread a process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW", "DVC"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, **more}


def run(command: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed."""
    done = subprocess.run(
        command, cwd=folder, env=environment(**more), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def lock(folder: Path) -> dict[str, Any]:
    """The parsed dvc.lock."""
    found: dict[str, Any] = yaml.safe_load((folder / "dvc.lock").read_text())
    return found
