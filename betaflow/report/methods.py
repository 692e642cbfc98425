"""How each method is called and drawn: the one place that says so.

Every two first colours differ for readers with each kind of colour blindness, and markers repeat
the method.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import to_rgb

from betaflow.config import Arm, Method

SCORERS = {"reward_model": "reward model", "gold": "gold"}


class Look(NamedTuple):
    """A method's marker, and the colours of its first and its last arm."""

    marker: str
    first: str
    last: str


LABELS: dict[Method, str] = {
    "sft": "SFT",
    "dpo": "DPO",
    "ipo": "IPO",
    "slic": "SLiC",
    "online_dpo": "Online DPO",
    "preferred_ft": "Preferred-FT",
    "unlikelihood": "Unlikelihood",
    "ppo": "PPO",
    "ppo_gt": "PPO-GT",
    "best_of_n": "Best-of-N",
}
LOOKS: dict[str, Look] = {  # by `label`
    "SFT": Look("D", "#515151", "#515151"),
    "DPO": Look("o", "#083c7d", "#7fb9da"),
    "IPO": Look("^", "#9f20ff", "#d9a8ff"),
    "SLiC": Look("v", "#bf609f", "#e3b8d4"),
    "Online DPO": Look("p", "#009050", "#7fd3a5"),
    "Preferred-FT": Look("P", "#60df60", "#a8eea8"),
    "Unlikelihood": Look("X", "#9f9fff", "#cfcfff"),
    "PPO": Look("s", "#ec620f", "#9e3303"),
    "PPO-GT": Look("h", "#800000", "#c06060"),
    "Best-of-N (reward model)": Look("<", "#dfbf9f", "#dfbf9f"),
    "Best-of-N (gold)": Look("*", "#000000", "#000000"),
}
# By what an arm is known in its method's grid: column, symbol.
STRENGTHS = (("beta", "β"), ("alpha", "α"), ("n", "n"))


def label(row: Mapping[str, Any]) -> str:
    """The method of an arm (its row, or its `model_dump`) in words: a key of `LOOKS`."""
    name = LABELS[row["method"]]
    return f"{name} ({SCORERS[row['scorer']]})" if row.get("scorer") else name


def setting(row: Mapping[str, Any]) -> str:
    """An arm's point in its grid, apart from learning rate and seed: `β = 0.1`, or nothing.

    Of Preferred-FT it is nothing too: its α is always 0.
    """
    if row["method"] == "preferred_ft":
        return ""
    parts = [f"{symbol} = {row[name]:g}" for name, symbol in STRENGTHS if row.get(name) is not None]
    if row.get("target_kl"):
        parts.append(f"target KL = {row['target_kl']:g}")
    return ", ".join(parts)


def settings_by_method(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """By method, as `LOOKS` has them, and by setting in words, its rows; SFT is left out.

    Args:
        rows: with `method` (a `label`), `setting` and `learning_rate`, which is told where a
            method has several.
    """
    rates: dict[str, set[float | None]] = {}
    for row in rows:
        rates.setdefault(row["method"], set()).add(row["learning_rate"])
    found: dict[str, dict[str, list[Any]]] = {}
    for row in rows:
        method, point = row["method"], row["setting"]
        if len(rates[method]) > 1:
            point = ", ".join(filter(None, [point, f"rate {row['learning_rate']:g}"]))
        found.setdefault(method, {}).setdefault(point, []).append(row)
    return {method: found[method] for method in LOOKS if method in found and method != "SFT"}


def colours(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """By arm name, its colour in every plot: a hue a method, first to last in the rows' order."""
    methods = {row["arm"]: label(row) for row in rows}
    found: dict[str, tuple[float, float, float]] = {}
    for name, look in LOOKS.items():
        arms = [arm for arm, own in methods.items() if own == name]
        ramp = np.linspace(to_rgb(look.first), to_rgb(look.last), len(arms))
        found |= {arm: tuple(colour) for arm, colour in zip(arms, ramp.tolist(), strict=True)}
    return found


def seeds_of(arms: Sequence[Arm]) -> dict[tuple[str, str, float | None], list[str]]:
    """By method, setting and learning rate, the names of its arms, which differ by their seed."""
    groups: dict[tuple[str, str, float | None], list[str]] = {}
    for arm in arms:
        row = arm.model_dump()
        groups.setdefault((label(row), setting(row), arm.learning_rate), []).append(arm.name)
    return groups


def trials(sweep: Iterable[Arm]) -> dict[Method, int]:
    """By method, in the arms' order, its tuning trials: arms that differ in more than the seed."""
    points = dict.fromkeys(arm.model_copy(update={"seed": None}) for arm in sweep)
    found: dict[Method, int] = {}
    for arm in points:
        found[arm.method] = found.get(arm.method, 0) + 1
    return found
