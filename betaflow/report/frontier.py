"""How near every arm comes to the closed-form optimum: the numbers of `frontier.json`.

A function of the stages' outputs and of `compare` and `optimum` in params.yaml. Rewards are the
gold reward where there is an optimum, or else the judge's. Means are over in-domain prompts, T = 1,
less their draws' luck (`evaluation.control_variate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from betaflow.config import Arm, CompareSettings, Scorer
from betaflow.errors import UserError
from betaflow.evaluation.best_of_n import best_of_n_kl, best_of_n_rewards
from betaflow.evaluation.bootstrap import UNKNOWN, Estimate, percentile_interval
from betaflow.evaluation.control_variate import without_luck
from betaflow.evaluation.frontier import (
    Area,
    Fraction,
    area_difference,
    area_fraction,
    ceiling,
    fraction_of_optimum,
    prompt_means,
    prompt_weights,
)
from betaflow.evaluation.optimum import Array, Optimum, reward_at, trace
from betaflow.report.estimates import KL_TEMPERATURE, Row, check_samples, judge_column, spread
from betaflow.report.estimates import interval as mean_interval
from betaflow.report.methods import LABELS, seeds_of

LOW_KL, HIGH_KL = 1.0, 4.0  # nats: where methods are compared as a whole
DPO = LABELS["dpo"]  # the method that the others are compared with
LARGEST_N = 128  # of the curve of Best-of-N, by powers of 2
ARM_COLUMNS = [f"{name}{end}" for name in ("reward", "kl") for end in ("", "_low", "_high")]
ARM_COLUMNS += ["optimum", "fraction", "fraction_low", "fraction_high", "note"]

Document = dict[str, Any]


class Draws(NamedTuple):
    """What is known of pi_ref: `rewards` (prompts, draws), and the optimum made of them.

    `scores`: the reward model's of the same draws, where they are known.
    """

    prompts: Array
    rewards: Array
    found: Optimum
    minimum_ess: float
    scores: Array | None = None

    def of(self, prompts: Sequence[str]) -> Draws:
        """The same of some of the prompts."""
        rows = np.isin(self.prompts, prompts)
        rewards = self.rewards[rows]
        found = trace(rewards, minimum_ess=self.minimum_ess)
        scores = None if self.scores is None else self.scores[rows]
        return Draws(self.prompts[rows], rewards, found, self.minimum_ess, scores)


def read_draws(table: pd.DataFrame, minimum_ess: float) -> Draws | None:
    """`out/optimum/draws.parquet` as a matrix; None where nothing was drawn or no gold is known."""
    if table.empty or table["gold_reward"].isna().any():
        return None
    names = np.sort(table["prompt_id"].unique())
    matrix = draw_matrix(table, "gold_reward")
    known = "reward_model" in table and table["reward_model"].notna().all()
    scores = draw_matrix(table, "reward_model") if known else None
    return Draws(names, matrix, trace(matrix, minimum_ess=minimum_ess), minimum_ess, scores)


def draw_matrix(table: pd.DataFrame, column: str) -> Array:
    """(prompts, draws) values of a column of `out/optimum/draws.parquet`, prompts sorted by id."""
    values = table.sort_values(["prompt_id", "draw"])[column].to_numpy()
    return values.reshape(table["prompt_id"].nunique(), -1)


def frontier(
    arms: Sequence[Arm],
    samples: Mapping[str, pd.DataFrame],
    curves: Mapping[str, pd.DataFrame],
    draws: Draws | None,
    settings: CompareSettings,
) -> Document:
    """The document `frontier.json`, before rounding; `docs/metrics.md` explains its keys.

    Args:
        arms: the sweep.
        samples: by arm name, its scored completions.
        curves: by arm name, its `curve.parquet`, of arms that have one.
        draws: of pi_ref; None: no optimum, and only the arms are told.
        settings: the judge and how to resample.

    Raises:
        UserError: samples that can't be compared, or of other prompts than the draws.
    """
    check_samples(arms, samples, settings)
    reward = judge_column(settings) if draws is None else "gold_reward"
    own = {arm.name: without_its_luck(_own(samples[arm.name]), reward) for arm in arms}
    if draws is not None:
        _check_prompts(own, draws)
    rows = [_arm(arm, own[arm.name], reward, draws, settings) for arm in arms]
    looks = {
        name: pd.concat([without_its_luck(look, reward) for _, look in table.groupby("step")])
        for name, table in curves.items()
        if reward in table
    }
    return {
        "reward": reward,
        "confidence": settings.confidence,
        "optimum": None if draws is None else _optimum(draws, settings),
        "best_of_n": [] if draws is None else _best_of_n(draws, settings),
        "arms": rows,
        "curves": {name: _looks(table, reward) for name, table in looks.items()},
        "methods": [] if draws is None else _methods(arms, own, looks, draws, settings),
        "violations": [row["arm"] for row in rows if row.pop("above")],
    }


def share_of_optimum(
    own: pd.DataFrame, reward: str, draws: Draws, settings: CompareSettings
) -> Fraction:
    """The reward of samples at T = 1 against the optimum at their KL, as `compare` asks."""
    return fraction_of_optimum(
        own[reward],
        own["kl"],
        own["prompt_id"],
        draws.found,
        draws.prompts,
        **settings.resampling,
    )


def without_its_luck(own: pd.DataFrame, reward: str) -> pd.DataFrame:
    """Draws at T = 1 with `reward` and `kl` less what the draws' luck explains of them.

    Args:
        own: draws of one policy, or of several, told apart by `arm`; with log pi / pi_ref as
            `log_ratio`, or in the two columns that it is the difference of.
    """
    ratio = own.get("log_ratio")
    if ratio is None:
        ratio = own["policy_logprob"] - own["reference_logprob"]
    groups = own.groupby([name for name in ("arm", "prompt_id") if name in own]).ngroup()
    luck = ratio - own["kl"]
    return own.assign(**{name: without_luck(own[name], luck, groups) for name in (reward, "kl")})


def _own(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["domain"] == "in") & (table["temperature"] == KL_TEMPERATURE)]


def _check_prompts(own: Mapping[str, pd.DataFrame], draws: Draws) -> None:
    for name, table in own.items():
        if set(table["prompt_id"]) != set(draws.prompts):
            raise UserError(
                f"out/optimum and the samples of {name} are not about the same prompts; "
                "run `dvc repro` again"
            )


def _arm(
    arm: Arm, own: pd.DataFrame, reward: str, draws: Draws | None, settings: CompareSettings
) -> Row:
    """An arm's reward and KL, and its share of the optimum's gain at that KL.

    `above`: whether that share's interval lies above 1, which only chance or an error explains: no
    policy is better. Where the share is not known: whether the reward's lies above the optimum's.
    """
    gained = mean_interval(own[reward], own["prompt_id"], settings)
    kl = mean_interval(own["kl"], own["prompt_id"], settings)
    row: Row = {"arm": arm.name, **arm.model_dump()}
    row |= spread("reward", gained) | spread("kl", kl)
    row |= dict.fromkeys(ARM_COLUMNS[6:-1]) | {"note": "", "above": False}
    if draws is None:
        return row
    share = share_of_optimum(own, reward, draws, settings)
    row |= {"optimum": share.optimum, **spread("fraction", share.fraction), "note": share.note}
    if np.isfinite(share.fraction.low):  # of one resampling of the prompts for both
        row["above"] = bool(share.fraction.low > 1)
    else:
        row["above"] = bool(gained.low > _band(draws, share.kl, settings).high)
    return row


def _band(draws: Draws, kl: float, settings: CompareSettings) -> Estimate:
    """R* at a KL with its interval; beyond what the draws tell, of the upper bound."""
    weights = prompt_weights(len(draws.prompts), settings.bootstrap, settings.seed)
    at = np.full((len(weights), 1), kl)
    resampled = reward_at(draws.found, at, weights)[:, 0]
    best = float(reward_at(draws.found, kl))
    return percentile_interval(best, resampled, len(draws.prompts), settings.confidence)


def _optimum(draws: Draws, settings: CompareSettings) -> Document:
    """The optimum's curve and band, up to the KL that the draws tell."""
    curve = ceiling(
        draws.found,
        **settings.resampling,
    )
    return {
        "prompts": len(draws.prompts),
        "draws": draws.rewards.shape[1],
        "trusted_kl": draws.found.trusted_kl,
        "reference": float(draws.found.reference.mean()),
        **{name: values.tolist() for name, values in curve._asdict().items()},
    }


def _best_of_n(draws: Draws, settings: CompareSettings) -> list[Row]:
    """Gold reward of Best-of-N for n = 1, 2, 4 and on, by gold and by the reward model."""
    scorers: dict[Scorer, Array | None] = {"gold": None}
    if draws.scores is not None:
        scorers["reward_model"] = draws.scores
    return [
        {"scorer": scorer, "n": n, "kl": best_of_n_kl(n)}
        | spread(
            "reward", mean_interval(best_of_n_rewards(draws.rewards, n, proxies), None, settings)
        )
        for scorer, proxies in scorers.items()
        for n in sizes(draws.rewards.shape[1])
    ]


def sizes(draws: int) -> list[int]:
    """1, 2, 4 and on: the n of Best-of-N that so many draws a prompt tell."""
    return [2**power for power in range(min(LARGEST_N, draws).bit_length())]


def _looks(table: pd.DataFrame, reward: str) -> list[Row]:
    """Mean KL and reward at each look while the arm trained."""
    means = table.groupby("step")[["kl", reward]].mean()
    found = zip(means.index.tolist(), means["kl"], means[reward], strict=True)
    return [{"step": step, "kl": float(kl), "reward": float(value)} for step, kl, value in found]


def _methods(
    arms: Sequence[Arm],
    own: Mapping[str, pd.DataFrame],
    curves: Mapping[str, pd.DataFrame],
    draws: Draws,
    settings: CompareSettings,
) -> list[Row]:
    """By method, the share of the optimum's area: over its settings' ends, and over all looks.

    A setting is one point, the mean of its seeds: else the hull would take the luckiest of them.
    `area_seed_sd`: the standard deviation of the areas of each training seed alone. `difference`:
    the area less that of DPO, or of the first method where there is no DPO.
    """
    seed_of = {arm.name: arm.seed for arm in arms}
    groups: dict[str, list[list[str]]] = {}  # the arms of each setting
    for (method, *_), names in seeds_of([arm for arm in arms if arm.method != "sft"]).items():
        groups.setdefault(method, []).append(names)
    tables = [table for table in curves.values() if "gold_reward" in table]
    common = set(draws.prompts).intersection(*(set(table["prompt_id"]) for table in tables))
    seen = draws.of(sorted(common)) if tables and len(common) > 1 else None
    areas = {
        name: _area([pd.concat(own[seed] for seed in seeds) for seeds in points], draws, settings)
        for name, points in groups.items()
    }
    against = DPO if DPO in groups else next(iter(groups), "")
    rows = []
    for name, points in groups.items():
        ends = areas[name]
        compared = against if name != against else None
        difference = UNKNOWN
        if compared:
            other = areas[compared]
            difference = area_difference(ends, other, len(draws.prompts), settings.confidence)
        looks = [
            look[look["prompt_id"].isin(common)]
            for seeds in points
            if (known := [curves[s] for s in seeds if "gold_reward" in curves.get(s, ())])
            for _, look in pd.concat(known).groupby("step")
        ]
        rows.append(
            {
                "method": name,
                "settings": len(points),
                "low_kl": ends.low_kl,
                "high_kl": ends.high_kl,
                **spread("area", ends.fraction),
                "area_seed_sd": _seed_sd(points, seed_of, own, draws, settings),
                "against": compared,
                **spread("difference", difference),
                "prompts": len(draws.prompts),
                "looks": len(looks),
                "looks_prompts": len(seen.prompts) if seen else 0,
                **spread("looks_area", _area(looks if seen else [], seen or draws, settings)[0]),
            }
        )
    return rows


def _seed_sd(
    points: Sequence[Sequence[str]],
    seed_of: Mapping[str, int | None],
    own: Mapping[str, pd.DataFrame],
    draws: Draws,
    settings: CompareSettings,
) -> float:
    """Of the areas of each seed that every setting has; NaN where that is not more than one."""
    by_seed = [{seed_of[name]: own[name] for name in names} for names in points]
    common = set(by_seed[0]).intersection(*by_seed[1:])
    if len(common) < 2:
        return float("nan")
    areas = [
        _area([tables[seed] for tables in by_seed], draws, settings).fraction.estimate
        for seed in common
    ]
    return float(np.std(areas, ddof=1))


def _area(points: Sequence[pd.DataFrame], draws: Draws, settings: CompareSettings) -> Area:
    """`area_fraction` of points, each a table of completions."""
    high = min(HIGH_KL, draws.found.trusted_kl)
    if not points or high <= LOW_KL:
        return Area(UNKNOWN, LOW_KL, high, np.array([]))
    rewards, kls = (
        np.array([prompt_means(t[name], t["prompt_id"], draws.prompts) for t in points])
        for name in ("gold_reward", "kl")
    )
    return area_fraction(
        rewards,
        kls,
        draws.found,
        LOW_KL,
        high,
        **settings.resampling,
    )
