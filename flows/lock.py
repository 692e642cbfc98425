"""One run at a time in a workspace."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from betaflow.errors import UserError

LOCK = Path("out/.local/align.lock")


@contextmanager
def workspace_lock(workspace: Path) -> Iterator[None]:
    """Hold the workspace for one run. Raises `UserError` where another run has it."""
    path = workspace / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise UserError(
                f"another run (process {file.read().strip() or '?'}) is at work in {workspace}; "
                "wait for it, or stop it"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
