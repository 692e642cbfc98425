"""The looks at arms while they trained, as curves: levels, and gains in rewards over the start.

A gain is a prompt's mean less the same prompt's at the start, which was drawn by the same seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from math import nan
from typing import NamedTuple

import numpy as np
import pandas as pd

from betaflow.config import Arm, CompareSettings
from betaflow.errors import UserError
from betaflow.evaluation.optimum import Array
from betaflow.report.estimates import Row, interval, spread

REWARDS = ("gold_reward", "second_gold", "reward_model", "implicit")
LEVELS = ("kl", "entropy", "completion_tokens", "finished")
ENDS = ("", "_low", "_high")
LOOK_COLUMNS = ["step", "kl", "d", *LEVELS[1:]]
LOOK_COLUMNS += [f"{name}_gain{end}" for name in REWARDS for end in ENDS]


class Looks(NamedTuple):
    """The draws of every look, scored: one a row, with `REWARDS` but the implicit, NaN if unknown.

    Attributes:
        start: of pi_ref itself.
        curves: by arm name, of the arm at each `step`.
        second: what is known of the second gold score; None where there is none.
    """

    start: pd.DataFrame
    curves: Mapping[str, pd.DataFrame]
    second: Row | None


class Curve(NamedTuple):
    """Looks at a policy, the start's first; or the means of several policies.

    `steps` (S,), `levels` (S,) each, `gains` (S, prompts) each.
    """

    steps: Array
    levels: Mapping[str, Array]
    gains: Mapping[str, Array]

    @property
    def d(self) -> Array:
        """(S,) square roots of the KL in nats, which rounding may leave just below 0."""
        return np.sqrt(np.maximum(self.levels["kl"], 0.0))


class Run(NamedTuple):
    """An arm, its curve, and the draws of its last look."""

    arm: Arm
    curve: Curve
    end: pd.DataFrame


def read_run(arm: Arm, looks: Looks) -> Run:
    """What was seen of an arm. Other prompts than the start's are a `UserError`."""
    table = pd.concat([looks.start.assign(step=0), looks.curves[arm.name]], ignore_index=True)
    beta = float(arm.beta) if arm.has_implicit_reward and arm.beta is not None else nan
    table["implicit"] = beta * table["log_ratio"]
    means = table.groupby(["step", "prompt_id"])[[*REWARDS, *LEVELS]].mean()
    wide = {name: means[name].unstack("prompt_id").to_numpy() for name in (*REWARDS, *LEVELS)}
    if np.isnan(wide["kl"]).any():
        raise UserError(f"{arm.name} and the start were not looked at on the same prompts")
    curve = Curve(
        np.array(sorted(set(table["step"])), dtype=np.float64),
        {name: wide[name].mean(axis=1) for name in LEVELS},
        {name: wide[name] - wide[name][0] for name in REWARDS},
    )
    return Run(arm, curve, table[table["step"] == table["step"].max()])


def average(curves: Sequence[Curve]) -> Curve:
    """The mean curve, at the steps at which all were looked at."""
    steps = reduce(np.intersect1d, [curve.steps for curve in curves])
    kept = [np.isin(curve.steps, steps) for curve in curves]

    def mean(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        return {
            name: np.mean([p[name][rows] for p, rows in zip(parts, kept, strict=True)], axis=0)
            for name in parts[0]
        }

    return Curve(steps, mean([c.levels for c in curves]), mean([c.gains for c in curves]))


def curve_rows(curve: Curve, settings: CompareSettings) -> list[Row]:
    """A row a look: means over prompts, gains with intervals."""
    found = []
    for place, step in enumerate(curve.steps.tolist()):
        row: Row = {"step": int(step), "d": float(curve.d[place])}
        row |= {name: float(values[place]) for name, values in curve.levels.items()}
        for name, gains in curve.gains.items():
            row |= spread(f"{name}_gain", interval(gains[place], None, settings))
        found.append(row)
    return found


def correlations(draws: pd.DataFrame, reward: str) -> Row:
    """Of each other reward with `reward` over draws (Pearson's); NaN where one is not known."""
    return {name: float(draws[reward].corr(draws[name])) for name in REWARDS if name != reward}
