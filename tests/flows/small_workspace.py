"""A small real DVC workspace: the repository's params, and stages that sleep and write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from flows.stages import of_workspace

REPOSITORY = Path(__file__).resolve().parents[2]

# Reads what it depends on and writes its output whole, like a real stage; `gate-<stage>` and
# `fail-<stage>` in the workspace make it wait, or fail. It notes that it ran in `ran.txt`.
STAGE = """
import os, signal, subprocess, sys, time
from pathlib import Path

out, needs, stage = Path(sys.argv[1]), sys.argv[2:], os.environ["DVC_STAGE"]

def on_interrupt(number, frame):
    Path(f"checkpoint-{stage}").write_text("saved")
    sys.exit(130)

signal.signal(signal.SIGINT, on_interrupt)
with open("ran.txt", "a") as file:
    file.write(stage + "\\n")
print("hello from", stage, flush=True)
gate = Path(f"gate-{stage}")
if gate.exists():
    # A child in a session of its own, which may ignore SIGINT too.
    answer = "IGN" if Path("stubborn").exists() else "DFL"
    nap = f"import signal, time; signal.signal(signal.SIGINT, signal.SIG_{answer}); time.sleep(600)"
    apart = subprocess.Popen([sys.executable, "-c", nap], start_new_session=True)
    Path(f"pid-{stage}.tmp").write_text(f"{os.getpid()} {apart.pid}")
    os.replace(f"pid-{stage}.tmp", f"pid-{stage}")
for step in range(1, 10**9):
    print(f"@progress {stage} {min(step, 1000)}/1000 step loss=0.5", file=sys.stderr, flush=True)
    if not gate.exists():
        break
    time.sleep(0.05)
if Path(f"fail-{stage}").exists():
    print("the reason is told here", file=sys.stderr)
    sys.exit(3)
text = "".join(Path(need).read_text() for need in needs)
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text(f"{stage}\\n{text}")
"""

GRAPH = {
    "stages": {
        "first": {
            "cmd": "python stage.py out/first.txt source.txt",
            "deps": ["source.txt", "stage.py"],
            "outs": ["out/first.txt"],
        },
        "arm": {
            "matrix": {"beta": [0.1, 1.0]},
            "cmd": "python stage.py out/arm/${item.beta}.txt out/first.txt",
            "deps": ["out/first.txt"],
            "outs": ["out/arm/${item.beta}.txt"],
            "meta": {"resource": "device"},
        },
        "last": {
            "cmd": "python stage.py out/last.txt out/arm/0.1.txt",
            "deps": ["out/arm/0.1.txt"],
            "outs": ["out/last.txt"],
        },
        "apart": {
            "cmd": "python stage.py out/apart.txt",
            "deps": ["stage.py"],
            "params": ["run.experiment"],
            "outs": ["out/apart.txt"],
        },
    }
}
STAGES = {"first", "arm@0.1", "arm@1.0", "last", "apart"}


class Workspace:
    """The folder, and what the tests ask of it."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.path.mkdir(parents=True)
        (self.path / "stage.py").write_text(STAGE)
        (self.path / "source.txt").write_text("source\n")
        (self.path / "dvc.yaml").write_text(yaml.safe_dump(GRAPH, sort_keys=False))
        (self.path / ".gitignore").write_text("out/\n.prefect/\n")
        (self.path / ".dvcignore").write_text("/out/.local/\n")
        shutil.copy(REPOSITORY / "params.yaml", self.path)
        self.call("git", "init", "-q")
        self.dvc("init", "-q")
        self.dvc("config", "core.analytics", "false")

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "DVC_"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
        places = [str(REPOSITORY), *filter(None, [kept.get("PYTHONPATH")])]
        return kept | {"PATH": path, "PYTHONPATH": os.pathsep.join(places)}

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.path, env=self.environment, capture_output=True, text=True, check=True
        )

    def dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.call(sys.executable, "-m", "dvc", *arguments)

    def start_align(self, **variables: str) -> subprocess.Popen[str]:
        """`python -m flows.align`, as a terminal would run it: a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "flows.align"],
            cwd=self.path,
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )

    def align(self, status: int = 0, **variables: str) -> str:
        """Run the flow to its end and return what it printed."""
        process = self.start_align(**variables)
        printed, _ = process.communicate()
        assert process.returncode == status, printed
        return printed

    def ran(self) -> list[str]:
        """Stages that ran since the last call."""
        path = self.path / "ran.txt"
        found = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return found

    def gate(self, stage: str) -> None:
        """Make a stage wait, with children, until `open_gate`."""
        (self.path / f"gate-{stage}").touch()

    def open_gate(self, stage: str) -> None:
        (self.path / f"gate-{stage}").unlink()

    def pids(self, stage: str) -> list[int]:
        """Wait until a gated stage is at work; its process and that of its child."""
        path = self.path / f"pid-{stage}"
        until(path.exists)
        found = [int(pid) for pid in path.read_text().split()]
        path.unlink()
        return found

    def lock(self) -> Any:
        """`dvc.lock`, parsed."""
        return yaml.safe_load((self.path / "dvc.lock").read_text())

    def processes(self) -> list[psutil.Process]:
        """What still runs of any stage."""
        return of_workspace(self.path)


def until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait for a condition; the bound is only there so that a broken test ends."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found
