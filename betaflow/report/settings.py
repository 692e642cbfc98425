"""Arms that differ by their training seed alone, told together: the rows of `settings.csv`.

Completions of all seeds are pooled, so intervals are over prompts; the spread of the seeds' own
means stands beside them. Rewards and KLs at T = 1 are without their draws' luck, as in `frontier`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from betaflow.config import Arm, CompareSettings
from betaflow.evaluation.bootstrap import UNKNOWN, Estimate
from betaflow.report.estimates import (
    KL_TEMPERATURE,
    SFT,
    Row,
    at,
    inside,
    interval,
    judged,
    spread,
    won,
)
from betaflow.report.frontier import Draws, share_of_optimum, without_its_luck
from betaflow.report.methods import seeds_of

ESTIMATES = ("reward", "win_rate_vs_sft", "kl", "fraction")
COLUMNS = ["method", "setting", "learning_rate", "seeds", "temperature"]
COLUMNS += [f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high")]
COLUMNS += ["reward_seed_sd", "kl_seed_sd"]


def by_setting(
    arms: Sequence[Arm],
    samples: Mapping[str, pd.DataFrame],
    draws: Draws | None,
    reward: str,
    settings: CompareSettings,
) -> list[Row]:
    """A row for each setting, in the arms' order, and temperature (rising), of in-domain prompts.

    Args:
        arms: the sweep.
        samples: by arm name, its scored completions.
        draws: of pi_ref; None: `fraction` is NaN.
        reward: the samples' column that is told as `reward`.

    Returns:
        `kl` and `fraction` are of T = 1 on every row. `reward_seed_sd` and `kl_seed_sd` are the
        standard deviations of the seeds' means; NaN of a single seed.
    """
    own_of = {arm.name: inside(samples, arm.name) for arm in arms}
    rows = []
    for (method, point, rate), names in seeds_of(arms).items():
        pooled = pd.concat([own_of[name].assign(arm=name) for name in names])
        wins = pd.concat([_against_sft(own_of[name], own_of[SFT], settings) for name in names])
        at_one = seeds_at_one(samples, names, reward)
        kl = interval(at_one["kl"], at_one["prompt_id"], settings)
        share = _fraction(at_one, draws, reward, settings)
        for temperature in sorted(set(pooled["temperature"])):
            known = temperature == KL_TEMPERATURE
            own = at_one if known else pooled[pooled["temperature"] == temperature]
            row = {"method": method, "setting": point, "learning_rate": rate}
            row |= {"seeds": len(names), "temperature": temperature}
            row |= spread("reward", interval(own[reward], own["prompt_id"], settings))
            row |= spread(
                "win_rate_vs_sft", won(wins[wins["temperature"] == temperature], settings)
            )
            row |= spread("kl", kl) | spread("fraction", share)
            row["reward_seed_sd"] = _seed_sd(own, reward)
            row["kl_seed_sd"] = _seed_sd(at_one, "kl")
            rows.append(row)
    return rows


def seeds_at_one(
    samples: Mapping[str, pd.DataFrame], names: Sequence[str], reward: str
) -> pd.DataFrame:
    """In-domain completions of arms at T = 1, told apart by `arm`, less their draws' luck."""
    tables = [at(inside(samples, name), [KL_TEMPERATURE]).assign(arm=name) for name in names]
    return without_its_luck(pd.concat(tables), reward)


def _against_sft(own: pd.DataFrame, sft: pd.DataFrame, settings: CompareSettings) -> pd.DataFrame:
    """Verdicts over the reference at the temperatures that both were drawn at."""
    return judged(own, sft[sft["temperature"].isin(own["temperature"])], settings)


def _seed_sd(table: pd.DataFrame, column: str) -> float:
    """Standard deviation of the arms' means."""
    return float(table.groupby("arm")[column].mean().std())


def _fraction(
    at_one: pd.DataFrame, draws: Draws | None, reward: str, settings: CompareSettings
) -> Estimate:
    """The share of the optimum's gain; unknown without an optimum, or where the KL is."""
    if draws is None or at_one["kl"].isna().any():
        return UNKNOWN
    return share_of_optimum(at_one, reward, draws, settings).fraction
