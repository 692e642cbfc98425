"""Whose claim on a registered model is taken away at once, and whose is waited for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks import _claim, tracking

LEFT = f"{_claim.CLAIM}left"


@pytest.fixture
def client(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    shutil.copy(database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    found = tracking.client()
    found.create_registered_model("m")
    return found


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another process, at work until its input ends."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def of(process: subprocess.Popen[bytes]) -> str:
    return f"{_claim._machine()} {process.pid} {_claim._started(process.pid)}"


def ended(process: subprocess.Popen[bytes]) -> str:
    writer = of(process)
    process.kill()
    process.wait()
    return writer


def zombie(process: subprocess.Popen[bytes]) -> str:
    writer = of(process)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not taken leave of
    return writer


def reused(process: subprocess.Popen[bytes]) -> str:
    """Of a process whose number another one has by now."""
    return f"{_claim._machine()} {process.pid} 1"


def elsewhere(process: subprocess.Popen[bytes]) -> str:
    """Of another machine, on which a process of that number may well run."""
    return f"0 {ended(process)}"


def unreadable(process: subprocess.Popen[bytes]) -> str:
    return f"{_claim._machine()} {10**30} x"


def of_before(process: subprocess.Popen[bytes]) -> str:
    """Of a version of betaflow whose claims did not tell."""
    return ""


@pytest.mark.parametrize(
    ("writer", "waits"),
    [
        (ended, 0),
        (zombie, 0),
        (reused, 0),
        (of, 1),
        (elsewhere, 1),
        (unreadable, 1),
        (of_before, 1),
    ],
)
def test_only_a_dead_process_of_this_machine_is_not_waited_for(
    client: Any, other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch,
    writer: Callable[[subprocess.Popen[bytes]], str], waits: int,
) -> None:  # fmt: skip
    client.set_registered_model_tag("m", LEFT, writer(other))
    waited: list[float] = []

    def until_it_is_done(seconds: float) -> None:
        waited.append(seconds)
        client.delete_registered_model_tag("m", LEFT)

    monkeypatch.setattr(_claim.time, "sleep", until_it_is_done)
    with _claim.claimed(client, "m"):
        (mine,) = client.get_registered_model("m").tags.values()
        assert mine == f"{_claim._machine()} {os.getpid()} {_claim._started(os.getpid())}"
    assert len(waited) == waits
    assert client.get_registered_model("m").tags == {}
