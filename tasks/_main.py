"""What every stage's entry point shares: errors as one message, signals as exit codes."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Callable
from types import FrameType

from betaflow.errors import UserError
from betaflow.io import CHECKPOINTS


def _stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def run(main: Callable[[], None], *, parses: bool = False) -> None:
    """Run a stage. Exit 2 with a message on a `UserError`, 128 + n on signal n.

    Args:
        parses: `main` reads the command line. Else nothing may be there but `--help`.
    """
    if not parses:
        argparse.ArgumentParser(description=sys.modules["__main__"].__doc__).parse_args()
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def forget_checkpoints(*names: str) -> None:
    """Remove the checkpoints of stages that DVC has recorded: called by stages after them.

    A stage keeps its own: stopped while DVC hashes and copies what it wrote, that would be removed
    and made anew.
    """
    for name in names:
        shutil.rmtree(CHECKPOINTS / name, ignore_errors=True)


def set_threads(count: int) -> None:
    """Use `count` CPU threads for torch; a stage's input, since it can change the last bits."""
    import torch

    torch.set_num_threads(count)
