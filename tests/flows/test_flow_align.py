"""The flow by hand, on a small real workspace."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
from small_workspace import STAGES, Workspace

from flows.align import main
from flows.lock import workspace_lock


def test_it_does_what_dvc_repro_does_and_then_nothing(
    workspace: Workspace, server: dict[str, str], tmp_path: Path
) -> None:
    printed = workspace.align(**server)
    assert set(workspace.ran()) == STAGES
    assert "5 stages to run, 0 up to date" in printed
    assert "[5/5]" in printed

    serial = Workspace(tmp_path / "serial")
    serial.dvc("repro")
    assert workspace.lock() == serial.lock()

    assert "0 stages to run, 5 up to date" in workspace.align(**server)
    assert workspace.ran() == []


def test_a_killed_stage_takes_along_only_what_needs_it(
    workspace: Workspace, server: dict[str, str]
) -> None:
    workspace.gate("arm@0.1")
    process = workspace.start_align(**server)
    os.kill(workspace.pids("arm@0.1")[0], signal.SIGKILL)
    printed, _ = process.communicate()
    assert process.returncode == 1, printed
    assert "arm@0.1: killed by SIGKILL" in printed
    assert "    hello from arm@0.1" in printed
    assert "not run, as they need one of those: last" in printed
    assert set(workspace.lock()["stages"]) == STAGES - {"arm@0.1", "last"}
    assert workspace.processes() == []


def test_interrupted_with_no_server_it_leaves_nothing_and_goes_on(
    workspace: Workspace, server: dict[str, str]
) -> None:
    workspace.gate("arm@0.1")
    workspace.gate("arm@1.0")
    process = workspace.start_align()
    workspace.pids("arm@0.1")
    workspace.pids("arm@1.0")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    printed, _ = process.communicate()
    assert process.returncode == 130, printed
    assert "running it again goes on from there" in printed.splitlines()[-1]
    assert "Traceback" not in printed
    assert workspace.processes() == []
    for arm in ("arm@0.1", "arm@1.0"):
        assert (workspace.path / f"checkpoint-{arm}").exists()
        workspace.open_gate(arm)
    workspace.ran()
    workspace.align(**server)
    assert set(workspace.ran()) == {"arm@0.1", "arm@1.0", "last"}


def test_a_temporary_server_that_is_killed_stops_the_run(workspace: Workspace) -> None:
    workspace.gate("arm@0.1")
    process = workspace.start_align()
    workspace.pids("arm@0.1")
    (server,) = (
        child for child in psutil.Process(process.pid).children() if "uvicorn" in child.cmdline()
    )
    server.kill()
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, printed
    assert "Prefect's temporary server ended (status -9)" in printed
    assert (workspace.path / "checkpoint-arm@0.1").exists()
    assert workspace.processes() == []


def test_what_a_killed_flow_left_is_ended_by_the_next(
    workspace: Workspace, server: dict[str, str]
) -> None:
    workspace.gate("apart")
    process = workspace.start_align(**server)
    workspace.pids("apart")
    process.kill()
    process.wait()
    workspace.open_gate("apart")
    workspace.align(**server)
    assert workspace.processes() == []
    assert set(workspace.lock()["stages"]) == STAGES


def test_mistakes_end_it_before_anything_starts(workspace: Workspace) -> None:
    params = workspace.path / "params.yaml"
    good = params.read_text()
    params.write_text(good.replace("jobs: 2", "jobs: two"))
    assert "run.jobs" in workspace.align(status=2)
    params.write_text(good)
    with workspace_lock(workspace.path):
        printed = workspace.align(status=2)
    assert f"another run (process {os.getpid()})" in printed
    assert workspace.ran() == []
    assert not (workspace.path / ".prefect/prefect.db").exists()


def test_help_teaches(capsys) -> None:  # type: ignore[no-untyped-def]
    try:
        main(["--help"])
    except SystemExit as ended:
        assert ended.code == 0
    assert "params.yaml" in capsys.readouterr().out
