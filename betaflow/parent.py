"""A process that ends when the one that started it does, however that was killed."""

from __future__ import annotations

import ctypes
import signal
import sys


def end_with_parent(number: signal.Signals) -> None:
    """Have this process sent a signal when its parent dies (Linux; elsewhere nothing is done)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, number)
