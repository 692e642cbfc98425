"""Run one stage as `dvc repro --single-item`, in a session of its own, and end it for certain.

DVC's commands share DVC's session and process group, so a group signal reaches the trainer.
What starts a session of its own inside a stage (compile workers, engine processes) is found
by an environment variable that every process of a stage inherits.
"""

from __future__ import annotations

import codecs
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

# In the environment of every process that a stage starts.
WORKSPACE_MARK, STAGE_MARK = "BETAFLOW_WORKSPACE", "BETAFLOW_STAGE"
GRACE = 10.0  # seconds a stage has, after SIGINT, to save a checkpoint
KILL_WAIT = 5.0  # seconds given to SIGKILL
TAIL = 20  # last lines kept for the failure's message

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_STATUS = re.compile(r"failed to run: .*, exited with (-?\d+)")
_LOCKED = re.compile(r"Unable to acquire lock|is busy, it is being blocked by")


class StageFailed(Exception):
    """A stage that did not end well: which, why, and the last lines it wrote."""

    def __init__(self, stage: str, reason: str, tail: list[str]) -> None:
        lines = "".join(f"\n    {line}" for line in tail)
        super().__init__(f"{stage}: {reason}{lines}")
        self.stage, self.reason, self.tail = stage, reason, tail
        self.locked = any(_LOCKED.search(line) for line in tail)


class StageStopped(Exception):
    """A stage that was ended, or not begun, because the flow is stopping."""


def run_stage(
    stage: str,
    workspace: Path,
    stop: threading.Event,
    on_line: Callable[[str], None],
    variables: Mapping[str, str],
) -> None:
    """Run `stage` to its end; nothing it started is left when this returns or raises.

    Args:
        stage: its name for `dvc repro`.
        workspace: the folder of `dvc.yaml`.
        stop: set it to end the stage: SIGINT, then SIGKILL after `GRACE` seconds.
        on_line: gets each line of its output, from another thread.
        variables: added to its environment.

    Raises:
        StageFailed: with the exit status or signal, and the last lines.
        StageStopped: `stop` was set.
    """
    if stop.is_set():
        raise StageStopped(stage)
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage],
        cwd=workspace,
        env=stage_environment(stage, workspace) | dict(variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    tail: deque[str] = deque(maxlen=TAIL)
    reader = threading.Thread(target=_read_lines, args=(process.stdout, tail, on_line), daemon=True)
    reader.start()
    try:
        while process.poll() is None and not stop.is_set():
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
    finally:
        # Also when DVC itself was killed and its trainer lives on.
        end_processes(lambda: of_stage(process.pid, stage, workspace), GRACE)
        process.wait()
        reader.join(timeout=5)
    if process.returncode == 0:
        return
    if stop.is_set():
        raise StageStopped(stage)
    raise StageFailed(stage, _reason(process.returncode, tail), list(tail))


def stage_environment(stage: str, workspace: Path) -> dict[str, str]:
    """The environment of a stage: our own interpreter as `python`, and progress as lines."""
    return os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        WORKSPACE_MARK: str(workspace),
        STAGE_MARK: stage,
        "SPT_NOENV": "1",  # setproctitle must not write over the environment, where the mark is
        "BETAFLOW_PROGRESS": "lines",
        "DVC_NO_ANALYTICS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _read_lines(stream: IO[bytes], tail: deque[str], on_line: Callable[[str], None]) -> None:
    """Hand over each line as a terminal would show it: after its last carriage return."""
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode

    def emit(line: str) -> None:
        text = _ANSI.sub("", line).rstrip().rpartition("\r")[2]
        if not text:
            return
        if not text.startswith("@progress "):
            tail.append(text)
        with suppress(Exception):  # a display that fails must not block the stage's pipe
            on_line(text)

    rest = ""
    while chunk := os.read(stream.fileno(), 65536):
        *lines, rest = (rest + decode(chunk)).split("\n")
        for line in lines:
            emit(line)
        # A bar redrawn for hours without a newline must not pile up.
        kept = rest.rstrip("\r")
        rest = kept.rpartition("\r")[2] + rest[len(kept) :]
    emit(rest)
    stream.close()


def _reason(code: int, tail: deque[str]) -> str:
    """Why a stage failed; DVC tells its command's status only in the text."""
    if code < 0:
        return f"dvc was killed by {_signal_name(-code)}"
    for line in reversed(tail):
        if match := _STATUS.search(line):
            status = int(match[1])
            # A shell that did not `exec` its command reports 128 + the signal.
            number = -status if status < 0 else status - 128
            if name := _signal_name(number):
                hint = " (out of memory?)" if number == signal.SIGKILL else ""
                return f"killed by {name}{hint}"
            return f"exit status {status}"
    return f"dvc failed with exit status {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""


def of_stage(session: int, stage: str, workspace: Path) -> list[psutil.Process]:
    """Living processes of one stage: in its session, or started by it in another."""
    marks = (str(workspace), stage)
    return [
        process
        for process in psutil.process_iter()
        if (_session(process) == session or _marks(process) == marks) and _alive(process)
    ]


def of_workspace(workspace: Path) -> list[psutil.Process]:
    """Living processes that any flow's stages started in this workspace."""
    return [p for p in psutil.process_iter() if _marks(p)[0] == str(workspace) and _alive(p)]


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


def _marks(process: psutil.Process) -> tuple[str | None, str | None]:
    try:
        environment = process.environ()
    except (psutil.Error, OSError):  # gone, or another user's
        return None, None
    return environment.get(WORKSPACE_MARK), environment.get(STAGE_MARK)


def _alive(process: psutil.Process) -> bool:
    # An orphan that nobody reaps stays as a zombie: it is dead all the same.
    with suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def end_processes(find: Callable[[], list[psutil.Process]], grace: float) -> None:
    """SIGINT to all that `find` gives; after `grace` seconds SIGKILL, until it gives none."""
    for process in find():
        with suppress(psutil.Error):
            process.send_signal(signal.SIGINT)
    began = time.monotonic()
    while living := find():
        waited = time.monotonic() - began
        if waited > grace + KILL_WAIT:
            return  # stuck in the kernel: it goes when its system call returns
        if waited > grace:
            for process in living:
                with suppress(psutil.Error):
                    process.kill()
        time.sleep(0.1)
