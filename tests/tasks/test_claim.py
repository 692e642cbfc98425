"""Whose claim on a registered model is taken away at once, and whose is waited for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from betaflow.errors import UserError
from tasks import _claim, tracking
from tasks._registry import Registry

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


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no clock counts sleep")
@pytest.mark.parametrize(("slept", "used"), [(9.0, True), (11.0, False)])
def test_a_claim_ages_while_its_machine_sleeps(
    client: Any, monkeypatch: pytest.MonkeyPatch, slept: float, used: bool
) -> None:
    real, jump = time.clock_gettime, [0.0]
    monkeypatch.setattr(
        time, "clock_gettime", lambda c: real(c) + (jump[0] if c == time.CLOCK_BOOTTIME else 0.0)
    )
    monkeypatch.setattr(_claim, "HASTE", 10.0)
    with _claim.claimed(client, "m") as still_ours:
        still_ours()
        jump[0] = slept
        if used:
            still_ours()
        else:
            with pytest.raises(UserError, match="too slowly"):
                still_ours()


def test_a_champion_is_not_moved_by_a_program_whose_claim_was_taken_away(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is held up after it looked at the champion; by its clock not for long."""
    registry = Registry(client, "m")
    for _ in range(2):
        client.create_model_version("m", "source")
    real = Registry.tag

    def held_up(self: Registry, number: int, tags: dict[str, str]) -> None:
        real(self, number, tags)
        for name in _claim._claims(client, "m"):
            client.delete_registered_model_tag("m", name)
        client.set_registered_model_alias("m", "champion", "2")

    monkeypatch.setattr(Registry, "tag", held_up)
    with pytest.raises(UserError, match="too slowly"):
        registry.move_champion(1, instead_of=None)
    assert registry.holder("champion") == registry.version(2)
