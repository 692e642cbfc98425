"""The `dpo` stage over several processes: torchrun and FSDP2 on the CPU, launched by the params."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import tasks.dpo
from betaflow.config import load_params
from betaflow.data.tokenise import Limits
from tasks._inputs import stage_fingerprint

LIMITS = Limits("drop", 64, 96)
Result = tuple[list[dict[str, Any]], dict[str, torch.Tensor]]  # metrics and weights
ARM = "dpo-b0.5-lr0.001-s0"
GRID = ["--method", "dpo", "--beta", "0.5", "--learning-rate", "0.001"]
STAGE = [sys.executable, "-m", "tasks.dpo", *GRID]
QUICK = {
    "batch_of": "pairs", "epochs": 2.0, "batch_size": 8, "micro_batch_tokens": 60,
    "warmup_steps": 0, "threads": 1,
    "checkpoint_seconds": 1.0e-9,
}  # fmt: skip


def configure(workspace: Path, repository: Path, **changes: Any) -> None:
    params = yaml.safe_load((repository / "params.yaml").read_text())
    params["dpo"]["training"] |= QUICK | changes
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))


def environment(workspace: Path) -> dict[str, str]:
    tracking = f"sqlite:///{workspace / 'mlflow.db'}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": tracking}


@pytest.fixture
def alone(
    workspace: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, untracked: None
) -> Callable[..., Result]:
    """The stage in this process, with changed settings: its result."""
    monkeypatch.chdir(workspace)

    def run(**changes: Any) -> Result:
        configure(workspace, repository, processes=1, **changes)
        tasks.dpo.main(argparse.Namespace(method="dpo", beta=0.5, learning_rate=0.001, seed=0))
        return result(workspace)

    return run


def stage(workspace: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*STAGE, "--seed", "0"], cwd=workspace, env=environment(workspace),
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def result(workspace: Path) -> Result:
    folder = workspace / "out/dpo" / ARM
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows, load_file(folder / "model.safetensors")


def assert_same(found: Result, expected: Result) -> None:
    rows, weights = found
    for ours, theirs in zip(rows, expected[0], strict=True):
        for name in ("loss", "grad_norm", "rewards/margin", "tokens"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-4), name
    assert set(weights) == set(expected[1])
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[1][name], rtol=1e-3, atol=1e-4)


def test_two_processes_train_as_one_does_which_goes_on_from_their_checkpoint(
    workspace: Path,
    repository: Path,
    alone: Callable[..., Result],
    capsys: pytest.CaptureFixture[str],
) -> None:
    looks = {"eval_every": 3, "sample_every": 3, "patience": 5}
    expected = alone(**looks)
    assert len(expected[0]) == 10
    shutil.rmtree(workspace / "out/dpo")

    configure(workspace, repository, processes=2, **looks)
    kill_at(workspace, 6)
    capsys.readouterr()
    found = alone(**looks)
    (resumed,) = [x for x in capsys.readouterr().out.splitlines() if "resumed at step" in x]
    assert int(resumed.split()[4]) >= 6
    assert_same(found, expected)


def kill_at(workspace: Path, step: int) -> None:
    """Start the stage and SIGKILL its whole group once a checkpoint of `step` stands."""
    process = subprocess.Popen(
        [*STAGE, "--seed", "0"], cwd=workspace, env=environment(workspace),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    folder = workspace / "out/.local/checkpoints" / ARM
    deadline = time.monotonic() + 120
    while not any(int(p.name) >= step for p in folder.glob("[0-9]*")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (workspace / "out/dpo" / ARM).exists()


def test_two_processes_save_on_sigterm_and_train_adapters(
    workspace: Path, repository: Path, alone: Callable[..., Result]
) -> None:
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": None}
    expected = alone(lora=lora)
    assert set(expected[1]) == set(load_file(workspace / "out/sft/model.safetensors"))
    shutil.rmtree(workspace / "out/dpo")

    configure(workspace, repository, lora=lora, processes=2, sample_every=2, eval_every=5)
    process = subprocess.Popen(
        [*STAGE, "--seed", "0"], cwd=workspace, env=environment(workspace), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 2:"):
            os.killpg(process.pid, signal.SIGTERM)
            break
    out = process.stdout.read()
    assert process.wait() == 128 + signal.SIGTERM
    assert "saved step" in out, out
    done = stage(workspace)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resumed at step") == 1, done.stdout  # one rank speaks
    assert_same(result(workspace), expected)


def test_spreading_the_work_does_not_make_another_run(
    workspace: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    found = []
    for count in (1, 4):
        configure(workspace, repository, processes=count)
        settings = load_params("params.yaml").dpo.training.model_dump()
        found.append(stage_fingerprint("dpo", settings))
    assert found[0] == found[1]
