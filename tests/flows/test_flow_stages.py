"""One stage as a child process: its lines, how it fails, and that nothing outlives it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from small_workspace import Workspace, until

from flows import stages
from flows.stages import StageFailed, StageStopped, run_stage


class Running:
    """A stage in a thread, as the flow has it."""

    def __init__(self) -> None:
        self.stop, self.lines = threading.Event(), list[str]()
        self.error: Exception | None = None


@contextmanager
def running(workspace: Workspace, stage: str) -> Iterator[Running]:
    state = Running()

    def run() -> None:
        try:
            run_stage(stage, workspace.path, state.stop, state.lines.append, {})
        except (StageFailed, StageStopped) as error:
            state.error = error

    thread = threading.Thread(target=run)
    thread.start()
    yield state
    thread.join()
    assert workspace.processes() == []


def test_lines_arrive_as_a_terminal_shows_them(workspace: Workspace) -> None:
    script = workspace.path / "stage.py"
    script.write_text(script.read_text() + 'print("a bar\\r\\x1b[1ma bar, redrawn\\x1b[0m")\n')
    with running(workspace, "first") as state:
        pass
    assert state.error is None
    assert "hello from first" in state.lines
    assert "@progress first 1/1000 step loss=0.5" in state.lines
    assert "a bar, redrawn" in state.lines
    assert workspace.lock()["stages"].keys() == {"first"}


def test_a_failure_tells_status_and_last_lines(workspace: Workspace) -> None:
    (workspace.path / "fail-apart").touch()
    with running(workspace, "apart") as state:
        pass
    assert isinstance(state.error, StageFailed)
    assert state.error.reason == "exit status 3"
    assert "the reason is told here" in str(state.error)
    assert "@progress" not in str(state.error)


def test_a_stage_killed_is_told_by_its_signal(workspace: Workspace) -> None:
    workspace.gate("apart")
    with running(workspace, "apart") as state:
        os.kill(workspace.pids("apart")[0], signal.SIGKILL)
    assert isinstance(state.error, StageFailed)
    assert "SIGKILL" in state.error.reason
    assert "hello from apart" in state.error.tail


def test_when_dvc_is_killed_its_trainer_is_ended(workspace: Workspace) -> None:
    workspace.gate("apart")
    with running(workspace, "apart") as state:
        trainer = psutil.Process(workspace.pids("apart")[0])
        leader = os.getsid(trainer.pid)
        assert leader != os.getsid(0)
        os.kill(leader, signal.SIGKILL)
    assert isinstance(state.error, StageFailed)
    assert "SIGKILL" in state.error.reason
    assert (workspace.path / "checkpoint-apart").exists()


def test_stopping_lets_a_stage_save_and_then_kills_what_is_left(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "GRACE", 1.0)
    workspace.gate("apart")
    (workspace.path / "stubborn").touch()
    with running(workspace, "apart") as state:
        pids = workspace.pids("apart")
        state.stop.set()
    assert isinstance(state.error, StageStopped)
    assert (workspace.path / "checkpoint-apart").exists()
    assert not (workspace.path / "out/apart.txt").exists()
    until(lambda: not any(psutil.pid_exists(pid) and _lives(pid) for pid in pids))


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_stopped_flow_begins_no_stage(workspace: Workspace) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(StageStopped):
        run_stage("apart", workspace.path, stop, lambda line: None, {})
    assert workspace.ran() == []
