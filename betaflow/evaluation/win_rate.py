"""Win rates: how often one arm's completion is preferred to another's on the same prompt.

The judge is any score, higher is better. Two arms are compared sample by sample (same prompt and
temperature; draws of the same seed number, which are independent: each arm has seeds of its own).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from betaflow.errors import UserError
from betaflow.evaluation.bootstrap import Estimate, cluster_sums, mean_interval

KEYS = ["prompt_id", "temperature", "seed"]
NEAR = 1.4  # 7 % at 95 %: about the chance that Wilson's own end leaves from four losses on


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
    (1927) for as many independent verdicts as that standard error amounts to, p(1-p)/se^2. Near 0
    and 1 that can be too sure, so the ends are moved out:

    - The far end to where z^2 more clusters, lost (won) outright, would leave it, as Wilson's own
      is for all wins; and to Wilson's of as many verdicts as clusters with squared losses (wins),
      which are what the losses themselves are where labels are 0 and 1. Without these, soft labels
      that are alike, such as 0.99 each, look as sure as thousands of verdicts, and all wins look
      less sure than nearly all.
    - The near end to Poisson's bound of the few losses (wins) seen: Wilson's covers 84 % there at
      worst (Brown, Cai and DasGupta 2001, "Interval Estimation for a Binomial Proportion",
      section 4.1).

    Args:
        preferences: (N,) numbers in [0, 1], as `preferences` returns; NaN is left out.
        clusters: (N,) labels, such as prompt ids; None: every preference stands alone.
        resamples, confidence, seed: as in `bootstrap.mean_interval`.

    Returns:
        Estimate, standard error, low, high, the ends inside [0, 1]. Where every cluster says one
        half (all ties, as for an arm against itself) the interval has no width. NaN as in
        `bootstrap.mean_interval`.
    """
    numbers = np.asarray(preferences, dtype=np.float64)
    if ((numbers < 0) | (numbers > 1)).any():
        raise ValueError("a preference lies between 0 and 1")
    found = mean_interval(numbers, clusters, resamples=resamples, confidence=confidence, seed=seed)
    rate, error = found.estimate, found.standard_error
    if np.isnan(error):
        return found
    if rate == 0.5 and error == 0.0:
        return Estimate(rate, error, rate, rate)
    verdicts = rate * (1 - rate) / error**2 if error > 0 else inf
    low, high = wilson(rate, verdicts, confidence)
    sums, sizes = cluster_sums(numbers, clusters)
    low = min(low, _few(rate, verdicts, confidence), _outright(sums / sizes, confidence))
    high = max(high, 1 - _few(1 - rate, verdicts, confidence))
    high = max(high, 1 - _outright(1 - sums / sizes, confidence))
    unanimous, _ = wilson(1.0, len(sums), confidence)
    return Estimate(rate, error, *no_surer(rate, low, high, unanimous))


def no_surer(rate: float, low: float, high: float, unanimous: float) -> tuple[float, float]:
    """The ends, moved out so that unanimous verdicts are the surest there are.

    Args:
        unanimous: the lower end where all verdicts are wins: the share of them that is sure.
    """
    return min(low, rate * unanimous), max(high, 1 - (1 - rate) * unanimous)


def _outright(means: NDArray[np.float64], confidence: float) -> float:
    """Wilson's lower end of clusters that are lost outright as often as their squared loss says."""
    return wilson(float(1 - ((1 - means) ** 2).mean()), len(means), confidence)[0]


def _few(rate: float, verdicts: float, confidence: float) -> float:
    """The rate by which so many wins, or more, come up with the chance `NEAR` (1 - confidence).

    The Poisson bound of a count, by Wilson and Hilferty's cube (1931), with a binomial's spread:
    of a rate that is not small it lies inside Wilson's interval.
    """
    count = rate * verdicts
    if count == 0:
        return 0.0
    z = NormalDist().inv_cdf(max(0.5, 1 - NEAR * (1 - confidence))) * sqrt(1 - rate)
    return rate * max(0.0, 1 - 1 / (9 * count) - z / (3 * sqrt(count))) ** 3


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
