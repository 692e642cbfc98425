"""The second door: a server, a work pool, `prefect deploy --all`, a worker."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_workspace import REPOSITORY, STAGES, Workspace, until


class Prefect:
    """The command line, in the workspace, against the test's server."""

    def __init__(self, workspace: Workspace, settings: dict[str, str]) -> None:
        self.workspace, self.environment = workspace, workspace.environment | settings

    def __call__(self, *arguments: str) -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=self.workspace.path,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout
        return ended.stdout


@pytest.fixture
def prefect(workspace: Workspace, server: dict[str, str], tmp_path: Path) -> Iterator[Prefect]:
    """Both deployments made in the workspace, and a worker started in another folder."""
    (workspace.path / "flows").symlink_to(REPOSITORY / "flows")
    shutil.copy(REPOSITORY / "prefect.yaml", workspace.path)
    command = Prefect(workspace, server)
    command("work-pool", "create", "local", "--type", "process")
    command("deploy", "--all")
    with (tmp_path / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "local"],
            cwd=tmp_path,
            env=command.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield command
    finally:
        worker.send_signal(signal.SIGINT)
        try:
            worker.wait(timeout=3)  # one that polls may take its time to end by itself
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def test_a_worker_runs_the_deployment_and_cancels_it(
    workspace: Workspace, prefect: Prefect, tmp_path: Path
) -> None:
    table = workspace.path / "out/compare/table.csv"
    table.parent.mkdir(parents=True)
    table.write_text("arm,temperature,kl\nsft,1.0,0.0\n")

    prefect("deployment", "run", "align/local", "--watch")
    assert set(workspace.ran()) == STAGES, (tmp_path / "worker.log").read_text()
    assert "sft" in prefect("artifact", "inspect", "comparison")

    (workspace.path / "source.txt").write_text("changed\n")
    workspace.gate("arm@0.1")
    workspace.gate("arm@1.0")
    created = prefect("deployment", "run", "align/local")
    found = re.search(r"UUID: (\S+)", created)
    assert found is not None, created
    workspace.pids("arm@0.1")
    prefect("flow-run", "cancel", found[1])
    until(lambda: not workspace.processes())
    for arm in ("arm@0.1", "arm@1.0"):
        assert (workspace.path / f"checkpoint-{arm}").exists()
        assert not (workspace.path / f"out/arm/{arm[4:]}.txt").exists()

    def state() -> str:
        shown = prefect("flow-run", "inspect", found[1], "--output", "json")
        return str(json.loads(shown)["state"]["type"])

    until(lambda: state() == "CANCELLED")
    assert workspace.processes() == []
