"""Bootstrap over prompts: how sure a mean over samples is.

Completions of one prompt resemble each other, so the prompt, not the completion, is what is
drawn again (the cluster bootstrap). The interval is the percentile one with its levels widened
for few clusters, by Student's quantile and the factor n/(n-1) that resampling loses: Hesterberg,
"What Teachers Should Know about the Bootstrap" (2015), section 4.3, the expanded percentile.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK = 4_000_000  # drawn cluster indices held at once; fixed, so that results are too


class Estimate(NamedTuple):
    """A mean, its standard error and the ends of its interval, all in the values' unit."""

    estimate: float
    standard_error: float
    low: float
    high: float


UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"), float("nan"))


def mean_interval(
    values: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The mean of `values` with a bootstrap interval over clusters.

    Args:
        values: (N,) numbers. NaN means "not measured" and is left out; infinities are refused.
        clusters: (N,) labels, one a value, such as prompt ids; None: every value stands alone.
            Estimates over the same labels and seed share their resamples.
        resamples: bootstrap resamples.
        confidence: the interval's coverage, such as 0.95.
        seed: of the resamples; the same arguments give the same bits.

    Returns:
        The mean over values (not over cluster means), the bootstrap standard error and the
        interval. Without any value all four are NaN; with a single cluster the mean is known
        and the other three are NaN, as nothing tells how much prompts differ.
    """
    sums, sizes = cluster_sums(values, clusters)
    count = len(sums)
    if count == 0:
        return UNKNOWN
    estimate = float(sums.sum() / sizes.sum())
    if count == 1:
        return UNKNOWN._replace(estimate=estimate)
    totals, numbers = resampled_sums([sums, sizes], resamples, seed).T
    return percentile_interval(estimate, totals / numbers, effective_clusters(sizes), confidence)


def percentile_interval(
    estimate: float, resampled: NDArray[np.float64], clusters: float, confidence: float
) -> Estimate:
    """The expanded percentile interval of any statistic, from its values on resamples.

    Args:
        resampled: (resamples,) values.
        clusters: how many were drawn again in each; of unequal ones `effective_clusters`.

    Returns:
        NaN beside the estimate for a single cluster, or where a value is not finite.
    """
    if clusters < 2 or not np.isfinite(resampled).all():
        return UNKNOWN._replace(estimate=estimate)
    widening = sqrt(clusters / (clusters - 1))
    quantile = student_quantile((1 + confidence) / 2, clusters - 1)
    tail = NormalDist().cdf(-quantile * widening)
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(estimate, float(resampled.std(ddof=1) * widening), float(low), float(high))


def effective_clusters(sizes: ArrayLike) -> float:
    """How many clusters of equal size are as many: (sum n)^2 / sum n^2 (Kish 1965), 2 at least.

    A few large clusters among small ones make an estimate by themselves: their number, and not that
    of all, says how surely its spread is known.

    Args:
        sizes: (clusters,) values of each, two clusters or more.
    """
    n = np.asarray(sizes, dtype=np.float64)
    return max(2.0, float(n.sum() ** 2 / (n**2).sum()))


def cluster_sums(
    values: ArrayLike, clusters: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the values of each cluster, in the labels' sorted order; NaN left out."""
    numbers = np.asarray(values, dtype=np.float64)
    labels = np.arange(len(numbers)) if clusters is None else np.asarray(clusters)
    if numbers.ndim != 1 or labels.shape != numbers.shape:
        raise ValueError(f"one cluster a value: got shapes {numbers.shape} and {labels.shape}")
    if np.isinf(numbers).any():
        raise ValueError("an infinite value has no mean")
    known = ~np.isnan(numbers)
    names, index = np.unique(labels[known], return_inverse=True)
    sums = np.bincount(index, weights=numbers[known], minlength=len(names)).astype(np.float64)
    return sums, np.bincount(index, minlength=len(names)).astype(np.float64)


def design_effect(values: ArrayLike, clusters: ArrayLike | None) -> float:
    """How many times the variance of independent values' mean that of clustered ones' is.

    The variance between clusters, which holds however alike their values are (Liang and Zeger
    1986, for a mean), over that of values drawn alone; N values tell as much as N over this. At
    least 1. Where nothing can be told (values that are all the same, or a single cluster) it is
    the largest, of clusters whose values are all alike: sum n^2 / N of their sizes n (Kish 1965).

    Args:
        values: (N,) finite numbers, one at least.
        clusters: (N,) labels; None: every value stands alone, and the effect is 1.
    """
    if clusters is None:
        return 1.0
    numbers = np.asarray(values, dtype=np.float64)
    sums, sizes = cluster_sums(numbers, clusters)
    n, count, mean = len(numbers), len(sums), numbers.mean()
    spread = float(((numbers - mean) ** 2).sum())
    if count == 1 or spread == 0:
        return float((sizes**2).sum() / n)
    between = float(((sums - mean * sizes) ** 2).sum())
    return max(1.0, between / spread * count / (count - 1) * (n - 1) / n)


def prompt_weights(prompts: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """(resamples, prompts) shares of prompts drawn with replacement; `weights @ x` resamples x.

    Those of the same number of prompts and seed are `mean_interval`'s resamples.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    drawn = random.integers(0, prompts, size=(resamples, prompts))
    cells = drawn + prompts * np.arange(resamples)[:, None]
    counts = np.bincount(cells.ravel(), minlength=resamples * prompts)
    return counts.reshape(resamples, prompts) / prompts


def resampled_sums(
    columns: Sequence[NDArray[np.float64]], resamples: int, seed: int
) -> NDArray[np.float64]:
    """(resamples, columns) sums of each column, (clusters,), over `mean_interval`'s resamples."""
    random = np.random.Generator(np.random.PCG64(seed))
    count = len(columns[0])
    block = max(1, BLOCK // count)
    found = []
    for start in range(0, resamples, block):
        drawn = random.integers(0, count, size=(min(block, resamples - start), count))
        found.append(np.stack([column[drawn].sum(axis=1) for column in columns], axis=1))
    return np.concatenate(found)


def student_quantile(probability: float, freedom: float) -> float:
    """Student's t quantile by Cornish-Fisher (Abramowitz and Stegun 26.7.5).

    Right to 1 % from 4 degrees of freedom up, too small below; saves a dependency on scipy.
    """
    z, nu = NormalDist().inv_cdf(probability), float(freedom)
    return (
        z
        + (z**3 + z) / (4 * nu)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * nu**3)
    )
