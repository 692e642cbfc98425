"""One program at a time moves a registered model's `champion`, whatever machine it runs on.

MLflow has no lock, and moving an alias asks nothing about where it was. So whoever wants to move it
first writes a claim, a tag of its own name on the registered model, then reads all claims, and goes
on only if there is no other. Of two programs the one that writes later sees the other's claim, if
the registry shows what was written (as its database does): both can withdraw, both can't go on.
They wait for a random time and try again.

A program that was killed leaves its claim. A claim tells which process wrote it, so on the same
machine a dead one's is taken away at once. Another machine's is taken to be dead when it has stood
for `PATIENCE` seconds since it was first seen, and a program whose claim is older than `HASTE`, or
was taken away, does not use it, so clocks need not agree. Seconds in which its machine sleeps
count, where there is a clock that counts them (on Linux). What is left: a program that stops, or
whose machine sleeps, for `PATIENCE` - `HASTE` between its last look at claim and clock and its
request's arrival, and one that is killed on this machine while its request is under way.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from betaflow.errors import UserError

CLAIM = "betaflow.claim."
PATIENCE = 60.0  # seconds; more than a request's timeout and its retry (tracking.client)
HASTE = 10.0
PAUSE = 0.5  # seconds, times 1 to 2


@contextmanager
def claimed(client: Any, model: str) -> Iterator[Callable[[], None]]:
    """Hold the claim; what is given raises `UserError` if it is gone, or too old to use.

    It is to be called right before what the claim is for.
    """
    mine, since = _claim(client, model)

    def still_ours() -> None:
        # The clock last: the registry may be long in answering.
        if mine not in _claims(client, model) or _now() - since > HASTE:
            raise UserError(f"the registry answered too slowly to change {model} safely; run again")

    try:
        yield still_ours
    finally:
        _remove(client, model, mine)


def _claim(client: Any, model: str) -> tuple[str, float]:
    """Wait until there is no other claim; the name of ours, and when it was asked for."""
    seen: dict[str, float] = {}
    while True:
        now = _now()
        claims = _claims(client, model)
        seen = {name: seen.get(name, now) for name in claims}
        for name, writer in claims.items():
            if _is_gone(writer) or now - seen[name] > PATIENCE:
                _remove(client, model, name)
                del seen[name]
        if not seen:
            mine = CLAIM + uuid.uuid4().hex
            client.set_registered_model_tag(model, mine, _this_process())
            if set(_claims(client, model)) == {mine}:
                return mine, now
            _remove(client, model, mine)
        time.sleep(PAUSE * random.uniform(1, 2))


def _now() -> float:
    """Seconds on a clock that goes on while the machine sleeps, where there is one (Linux)."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _claims(client: Any, model: str) -> dict[str, str]:
    """The claims, and of each the process that wrote it."""
    tags = client.get_registered_model(model).tags
    return {name: writer for name, writer in tags.items() if name.startswith(CLAIM)}


def _remove(client: Any, model: str, name: str) -> None:
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):  # another program may have taken it to be dead
        client.delete_registered_model_tag(model, name)


def _machine() -> str:
    """Where a process number means what it means here: this boot, and this container's numbers."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"


def _started(pid: int) -> str:
    """When a process started, in ticks since boot; empty for one that has ended (a zombie)."""
    # After the program's name, which may hold anything: field 3, its state, and so on; 22, this.
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


def _this_process() -> str:
    """Machine, number and start of this process; empty on a system that does not tell."""
    try:
        return f"{_machine()} {os.getpid()} {_started(os.getpid())}"
    except OSError:
        return ""


def _is_gone(writer: str) -> bool:
    """Whether a claim's writer is known to run no more; of another machine's nothing is known."""
    machine, _, process = writer.rpartition(" ")[0].rpartition(" ")
    try:
        if machine != _machine():
            return False
        os.kill(int(process), 0)  # only asks; /proc may hide the processes of other users
        return _started(int(process)) != writer.rpartition(" ")[2]
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
