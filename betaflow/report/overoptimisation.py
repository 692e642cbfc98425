"""Over-optimisation: what training on a proxy makes of the gold reward as the KL grows.

The numbers of `overoptimisation.json`, a function of the looks at every arm while it trained, of
draws of pi_ref and of `compare` in params.yaml. A reward is told as its gain: a prompt's mean less
the same prompt's at the start, which was drawn by the same seeds. The laws that are fitted are
those of `betaflow.evaluation.overoptimisation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import Any, get_args

import numpy as np
import pandas as pd

from betaflow.config import Arm, CompareSettings
from betaflow.evaluation.best_of_n import best_of_n_kl, best_of_n_rewards
from betaflow.evaluation.optimum import Array
from betaflow.evaluation.overoptimisation import (
    Form,
    fit,
    fit_intervals,
    gold_peak,
    held_out_error,
)
from betaflow.report.curves import (
    ENDS,
    LEVELS,
    REWARDS,
    Curve,
    Looks,
    Run,
    average,
    correlations,
    curve_rows,
    read_run,
)
from betaflow.report.estimates import Row, spread
from betaflow.report.frontier import draw_matrix, sizes
from betaflow.report.methods import label, setting

FIT_COLUMNS = ["form", *(f"{name}{end}" for name in ("alpha", "beta", "peak_d") for end in ENDS)]
FIT_COLUMNS += ["peak_reward", "rmse", "points", "reason"]
FIT_COLUMNS += [
    f"{name}_{key}"
    for name in ("unseen_curve", "extrapolation")
    for key in ("rmse", "r2", "points", "reason")
]
GOLD_TRAINED = ("ppo_gt", "online_dpo")  # the gold reward judged what they drew in training
NO_GOLD = "the gold reward is known in the embedded world alone"

Document = dict[str, Any]


def overoptimisation(
    arms: Sequence[Arm], looks: Looks | None, draws: pd.DataFrame, settings: CompareSettings
) -> Document:
    """The document `overoptimisation.json`, before rounding; `docs/metrics.md` explains its keys.

    Args:
        arms: the sweep.
        looks: at the arms that were looked at; None: at none, and there is nothing to tell.
        draws: of pi_ref (`out/optimum/draws.parquet`), for Best-of-N; may be empty.
        settings: how to resample.

    Raises:
        UserError: an arm was looked at on other prompts than the start.
    """
    runs = [] if looks is None else [read_run(a, looks) for a in arms if a.name in looks.curves]
    groups: dict[Arm, list[Run]] = {}
    methods: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.arm.model_copy(update={"seed": None}), []).append(run)
        methods.setdefault(label(run.arm.model_dump()), []).append(run)
    return {
        "confidence": settings.confidence,
        "start": None if looks is None else _start(looks.start),
        "second_gold": None if looks is None else looks.second,
        "looks": [
            {"arm": run.arm.name, **run.arm.model_dump(), **row}
            for run in runs
            for row in curve_rows(run.curve, settings)
        ],
        "groups": [_group(point, own, list(groups), settings) for point, own in groups.items()],
        "methods": [_method(name, own, settings) for name, own in methods.items()],
        "best_of_n": None if looks is None else _best_of_n(draws, settings),
    }


def _judge(arm: Arm) -> str:
    """The reward by which a policy is judged: one that its own draws were not trained on."""
    return "second_gold" if arm.method in GOLD_TRAINED else "gold_reward"


def _proxies(arm: Arm) -> tuple[str, ...]:
    """The rewards that stood in for the judge's in training, or would have."""
    if arm.method in GOLD_TRAINED:
        return ("gold_reward", "implicit") if arm.has_implicit_reward else ("gold_reward",)
    return ("reward_model", "implicit") if arm.has_implicit_reward else ("reward_model",)


def _start(start: pd.DataFrame) -> Row:
    """Levels of pi_ref's own draws, and what makes a reward model's score gold-sized."""
    known = [*REWARDS[:3], *LEVELS[1:]]
    return {
        "prompts": int(start["prompt_id"].nunique()),
        "draws": len(start),
        **{name: float(start[name].mean()) for name in known},
        "reward_model_scale": float(start["gold_reward"].std() / start["reward_model"].std()),
        "correlation": correlations(start.assign(implicit=nan), "gold_reward"),
    }


def _group(
    point: Arm, runs: Sequence[Run], points: Sequence[Arm], settings: CompareSettings
) -> Row:
    """Arms that differ in their seed alone."""
    curve, ends = average([run.curve for run in runs]), pd.concat([run.end for run in runs])
    return {
        "name": _name(point, points),
        **point.model_dump(),
        "arms": [run.arm.name for run in runs],
        "judge": _judge(point),
        "proxies": _proxies(point),
        "curve": curve_rows(curve, settings),
        **_judged([run.curve for run in runs], _judge(point), settings),
        "gold_peak": _peak(curve, _judge(point), settings),
        "draws": len(ends),
        "correlation": correlations(ends, _judge(point)),
    }


def _name(point: Arm, points: Sequence[Arm]) -> str:
    """Method and setting; the learning rate too where that alone tells two groups apart."""

    def short(arm: Arm) -> str:
        row = arm.model_dump()
        return ", ".join(filter(None, (label(row), setting(row))))

    alike = sum(short(other) == short(point) for other in points)
    return short(point) if alike == 1 else f"{short(point)}, rate {point.learning_rate:g}"


def _method(name: str, runs: Sequence[Run], settings: CompareSettings) -> Row:
    """Every arm of a method, whatever its setting: does one law hold for all?"""
    by = _judge(runs[0].arm)
    return {
        "method": name,
        "arms": [run.arm.name for run in runs],
        "judge": by,
        **_judged([run.curve for run in runs], by, settings),
    }


def _judged(curves: Sequence[Curve], by: str, settings: CompareSettings) -> Row:
    """Both laws fitted to the gains in a reward; `reason` says why there is none."""
    d = np.concatenate([curve.d for curve in curves])
    gains = np.concatenate([curve.gains[by] for curve in curves])
    labels = np.repeat(np.arange(len(curves)), [len(curve.d) for curve in curves])
    if np.isnan(gains).any():
        return {"fits": [], "reason": NO_GOLD}
    fits = [_fit(d, gains, labels, form, settings) for form in get_args(Form)]
    return {"fits": fits, "reason": ""}


def _fit(d: Array, gains: Array, labels: Array, form: Form, settings: CompareSettings) -> Row:
    """A law fitted to (N, prompts) gains of the curves that `labels` (N,) names."""
    means = gains.mean(axis=1)
    found = fit(d, means, form)
    spreads = fit_intervals(
        d,
        gains,
        form,
        curves=labels if labels.any() else None,  # a single one: its prompts alone
        **settings.resampling,
    )
    row: Row = {"form": form}
    for name in ("alpha", "beta", "peak_d"):
        row |= spread(name, getattr(spreads, name))
    row |= {name: getattr(found, name) for name in ("peak_reward", "rmse", "points")}
    row["reason"] = spreads.reason
    held = held_out_error(d, means, labels, form)
    for name in ("unseen_curve", "extrapolation"):
        row |= {f"{name}_{key}": value for key, value in getattr(held, name)._asdict().items()}
    return row


def _peak(curve: Curve, by: str, settings: CompareSettings) -> Row:
    """Where the mean gain in a reward peaks, and what it loses after."""
    found = gold_peak(
        curve.steps,
        curve.d,
        curve.gains[by],
        **settings.resampling,
    )
    row: Row = {"highest": found.highest, "prompts": found.prompts, "kl": found.d.estimate**2}
    for name in ("step", "d", "reward", "decline"):
        row |= spread(name, getattr(found, name))
    return row | {"reason": NO_GOLD if np.isnan(curve.gains[by]).any() else found.reason}


def _best_of_n(draws: pd.DataFrame, settings: CompareSettings) -> Row | None:
    """The best of n draws by the reward model, n in the place of steps."""
    if draws.empty or draws["gold_reward"].isna().any():
        return None
    gold, proxy = draw_matrix(draws, "gold_reward"), draw_matrix(draws, "reward_model")
    several = sizes(gold.shape[1])
    means = {
        name: np.stack([best_of_n_rewards(values, n, proxy) for n in several])
        for name, values in (("gold_reward", gold), ("reward_model", proxy))
    }
    curve = Curve(
        np.array(several, dtype=np.float64),
        {"kl": np.array([best_of_n_kl(n) for n in several])},
        {name: values - values[0] for name, values in means.items()},
    )
    rows = curve_rows(curve, settings)
    return {
        "draws": len(draws),
        "correlation": float(draws["gold_reward"].corr(draws["reward_model"])),
        "curve": [{"n": row.pop("step"), **row} for row in rows],
        **_judged([curve], "gold_reward", settings),
        "gold_peak": _peak(curve, "gold_reward", settings),
    }
