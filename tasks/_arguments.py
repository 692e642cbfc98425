"""Command lines of the arms' stages."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from betaflow.config import Arm, Params, arms
from betaflow.errors import UserError


def number(text: str) -> int | float:
    """A grid value as DVC writes it: `1` stays an int, so that it names the same arm."""
    try:
        return int(text)
    except ValueError:
        return float(text)


GRID: dict[str, tuple[Any, str]] = {
    "method": (str, "one of the grid's methods"),
    "beta": (number, "strength of the KL constraint"),
    "alpha": (number, "weight of the rejected completion's likelihood; 0: Preferred-FT"),
    "target_kl": (number, "nats a completion that an adaptive beta aims at; 0: beta is fixed"),
    "learning_rate": (number, "peak learning rate"),
    "labelled": (number, "share of the labelled prompts whose pairs are kept"),
    "seed": (int, "order of the data, and draws"),
}


def grid_arguments(
    description: str | None, names: Sequence[str], methods: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse a point of a stage's grid, as by `--target-kl` for `target_kl`; all are required.

    Args:
        methods: what `--method` may be; None: anything.
    """
    parser = argparse.ArgumentParser(description=description)
    for name in names:
        kind, about = GRID[name]
        choices = methods if name == "method" else None
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=kind, required=True, choices=choices, help=about)
    return parser.parse_args()


def model_argument(description: str | None, params: Params) -> Arm:
    """The arm of the sweep that `--arm` names. Raises `UserError` if there is no such model."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--arm", required=True, help="an arm's name, as in out/arms.json")
    name = parser.parse_args().arm
    found = [arm for arm in arms(params) if arm.name == name and arm.has_model]
    if not found:
        raise UserError(f"no arm {name!r} with a model in the sweep; see the grids in params.yaml")
    return found[0]
