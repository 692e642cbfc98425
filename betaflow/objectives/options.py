"""The losses that `dpo_loss` knows and the options each uses, for those who need no tensors."""

from __future__ import annotations

import math
from typing import Literal, get_args

LossName = Literal[
    "sigmoid", "robust", "ipo", "hinge", "sppo_hard", "apo_zero", "apo_down", "simpo"
]
LOSSES: tuple[LossName, ...] = get_args(LossName)

# The loss of the paper's other methods, used as it was published: without options.
PUBLISHED: dict[str, LossName] = {"ipo": "ipo", "slic": "hinge"}
WITHOUT_OPTIONS = {"label_smoothing": 0.0, "length_normalised": False, "margin": 0.0}

USED_BY: dict[str, tuple[LossName, ...]] = {
    "label_smoothing": ("sigmoid", "robust"),
    "length_normalised": ("sigmoid", "ipo", "simpo"),
    "margin": ("simpo",),
}


def check_options(
    loss: str,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    length_normalised: bool = False,
    margin: float = 0.0,
) -> None:
    """Refuse what `dpo_loss` would: no option is ignored in silence.

    Raises:
        ValueError: an unknown loss, an option that this loss does not use, or a value out of range:
            beta > 0, 0 <= label_smoothing < 0.5, margin >= 0, all finite.
    """
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}; known losses: {', '.join(LOSSES)}")
    options = {
        "label_smoothing": label_smoothing,
        "length_normalised": length_normalised,
        "margin": margin,
    }
    for name, value in options.items():
        if value and loss not in USED_BY[name]:
            raise ValueError(
                f"loss {loss!r} does not use {name} (found {value}); "
                f"losses that use it: {', '.join(USED_BY[name])}"
            )
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be positive and finite, not {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be at least 0 and below 0.5, not {label_smoothing}")
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin must be at least 0 and finite, not {margin}")
