"""Win rates: how often one arm's completion is preferred to another's on the same prompt.

The judge is any score, higher is better. Two arms are compared sample by sample (same prompt,
temperature and seed), which makes the comparison a paired one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from betaflow.errors import UserError
from betaflow.evaluation.bootstrap import Estimate, cluster_sums, mean_interval

KEYS = ["prompt_id", "temperature", "seed"]


def preferences(scores_a: ArrayLike, scores_b: ArrayLike) -> NDArray[np.float64]:
    """(N,) preferences of a over b: 1 for the higher score, 1/2 for a tie, 0 for the lower.

    NaN where either score is NaN: a missing verdict is neither a tie nor a loss.
    """
    a, b = np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"one score of b for each of a: got shapes {a.shape} and {b.shape}")
    won = (a > b) + 0.5 * (a == b)
    return np.where(np.isnan(a) | np.isnan(b), np.nan, won)


def win_rate(
    preferences: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The mean preference with an interval from the bootstrap over clusters (prompts).

    The standard error is the cluster bootstrap's. The interval is Wilson's score interval
    (1927) for as many independent verdicts as that standard error amounts to, p(1-p)/se^2:
    near 0 and 1 a percentile interval covers too little (81 % instead of 95 % at a win rate of
    0.99 over 160 prompts), and at 0 and 1 it has no width at all.

    Args:
        preferences: (N,) numbers in [0, 1], as `preferences` returns; NaN is left out.
        clusters: (N,) labels, such as prompt ids; None: every preference stands alone.
        resamples, confidence, seed: as in `bootstrap.mean_interval`.

    Returns:
        Estimate, standard error, low, high, the ends inside [0, 1]. Where every cluster says
        the same (all ties, as for an arm against itself) the interval has no width, except at
        0 and 1, where it is Wilson's for as many verdicts as clusters. NaN as in
        `bootstrap.mean_interval`.
    """
    numbers = np.asarray(preferences, dtype=np.float64)
    if ((numbers < 0) | (numbers > 1)).any():
        raise ValueError("a preference lies between 0 and 1")
    found = mean_interval(numbers, clusters, resamples=resamples, confidence=confidence, seed=seed)
    rate, error = found.estimate, found.standard_error
    if np.isnan(error):
        return found
    if rate in (0.0, 1.0):
        verdicts = float(len(cluster_sums(numbers, clusters)[0]))
    elif error == 0.0:
        return Estimate(rate, 0.0, rate, rate)
    else:
        verdicts = rate * (1 - rate) / error**2
    low, high = wilson(rate, verdicts, confidence)
    return Estimate(rate, error, low, high)


def paired_scores(a: pd.DataFrame, b: pd.DataFrame, score: str) -> pd.DataFrame:
    """Two arms' scores side by side.

    Args:
        a, b: samples of two arms, with the columns of `KEYS` and `score`.
        score: the judge's column.

    Returns:
        Columns prompt_id, temperature, seed, score_a, score_b, in a's order.

    Raises:
        UserError: as `paired`.
    """
    return paired(a, b, [score]).rename(
        columns={f"{score}_{side}": f"score_{side}" for side in "ab"}
    )


def paired(a: pd.DataFrame, b: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Two arms' samples side by side.

    Args:
        a, b: samples of two arms, with the columns of `KEYS` and `columns`.

    Returns:
        Columns prompt_id, temperature, seed, and of each of `columns` its `_a` and its `_b`, in
        a's order.

    Raises:
        UserError: a key is there twice, or the two arms do not cover the same keys.
    """
    for side in (a, b):
        if side.duplicated(KEYS).any():
            row = side.loc[side.duplicated(KEYS), KEYS].iloc[0].to_dict()
            raise UserError(f"two samples have the same prompt, temperature and seed: {row}")
    left = a[[*KEYS, *columns]].rename(columns={name: f"{name}_a" for name in columns})
    right = b[[*KEYS, *columns]].rename(columns={name: f"{name}_b" for name in columns})
    joined = left.merge(right, on=KEYS, how="outer", indicator=True, sort=False)
    alone = joined[joined["_merge"] != "both"]
    if len(alone):
        row = alone[KEYS].iloc[0].to_dict()
        raise UserError(
            f"the two arms were not sampled over the same prompts, temperatures and seeds: "
            f"{len(alone)} samples have no partner, such as {row}; sample both again"
        )
    return left.merge(right, on=KEYS, how="left", sort=False)


def wilson(rate: float, verdicts: float, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a rate over so many independent verdicts (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    scale = 1 + z * z / verdicts
    centre = (rate + z * z / (2 * verdicts)) / scale
    half = z / scale * sqrt(rate * (1 - rate) / verdicts + z * z / (4 * verdicts**2))
    return max(0.0, centre - half), min(1.0, centre + half)
