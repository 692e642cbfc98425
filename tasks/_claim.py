"""One program at a time moves a registered model's `champion`, whatever machine it runs on.

MLflow has no lock, and moving an alias asks nothing about where it was. So whoever wants to move it
first writes a claim, a tag of its own name on the registered model, then reads all claims, and goes
on only if there is no other. Of two programs the one that writes later sees the other's claim, if
the registry shows what was written (as its database does): both can withdraw, both can't go on.
They wait for a random time and try again.

A program that was killed leaves its claim. Another's is taken to be dead when it has stood for
`PATIENCE` seconds since it was first seen, and a program whose claim is older than `HASTE` does
not use it, so clocks need not agree. What is left: a program that stops for `PATIENCE` - `HASTE`
between looking at its clock and its request's arrival.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from betaflow.errors import UserError

CLAIM = "betaflow.claim."
PATIENCE = 60.0  # seconds; more than a request's timeout and its retry (tracking.client)
HASTE = 10.0
PAUSE = 0.5  # seconds, times 1 to 2


@contextmanager
def claimed(client: Any, model: str) -> Iterator[Callable[[], None]]:
    """Hold the claim; what is given raises `UserError` if it has been held for too long to use."""
    mine, since = _claim(client, model)

    def still_ours() -> None:
        if time.monotonic() - since > HASTE:
            raise UserError(f"the registry answered too slowly to change {model} safely; run again")

    try:
        yield still_ours
    finally:
        _remove(client, model, mine)


def _claim(client: Any, model: str) -> tuple[str, float]:
    """Wait until there is no other claim; the name of ours, and when it was asked for."""
    seen: dict[str, float] = {}
    while True:
        now = time.monotonic()
        seen = {name: seen.get(name, now) for name in _claims(client, model)}
        for name in [name for name, first in seen.items() if now - first > PATIENCE]:
            _remove(client, model, name)
            del seen[name]
        if not seen:
            mine = CLAIM + uuid.uuid4().hex
            client.set_registered_model_tag(model, mine, "")
            if _claims(client, model) == {mine}:
                return mine, now
            _remove(client, model, mine)
        time.sleep(PAUSE * random.uniform(1, 2))


def _claims(client: Any, model: str) -> set[str]:
    return {name for name in client.get_registered_model(model).tags if name.startswith(CLAIM)}


def _remove(client: Any, model: str, name: str) -> None:
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):  # another program may have taken it to be dead
        client.delete_registered_model_tag(model, name)
