"""Two models on the same documents: McNemar's test, Tango's interval, Holm's correction."""

from __future__ import annotations

from math import erfc, log, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from betaflow.evaluation.bootstrap import (
    UNKNOWN,
    Estimate,
    cluster_sums,
    design_effect,
    effective_clusters,
    student_quantile,
)

Array = NDArray[np.float64]


def mcnemar(arm: ArrayLike, reference: ArrayLike) -> float:
    """McNemar's two-sided mid-p value that both get the same share of documents right.

    Given the documents on which they differ, either is right on Binomial(gained + lost, 1/2) of
    them. The exact p-value is too large by nature; the mid-p value counts only half the chance of
    what was seen, and keeps to its level in all but odd cases (Fagerland, Lydersen and Laake 2013).

    Args:
        arm, reference: (N,) results of 0 or 1 on the same documents.

    Raises:
        ValueError: another result, or other shapes.
    """
    a, b = right_or_wrong(arm, reference)
    gained, lost = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    differ = gained + lost
    seen = tail = 1  # binomial coefficients, whole numbers; divided by 2^differ in the end
    for k in range(min(gained, lost)):
        seen = seen * (differ - k) // (k + 1)
        tail += seen
    return (2 * tail - seen) / 2**differ


def clustered_p_value(arm: ArrayLike, reference: ArrayLike, clusters: ArrayLike) -> float:
    """Two-sided p-value that both get the same share right, of documents in clusters.

    McNemar's score test of as many documents as the design effect leaves (as Eliasziw and Donner
    1991 adjust it), by Student's t with a degree of freedom less than clusters. It and the ends of
    `difference_of_shares` agree on a difference of 0.

    Args:
        arm, reference: (N,) results of 0 or 1 on the same documents.
        clusters: (N,) labels, such as prompts.

    Returns:
        1 where no document differs; NaN for fewer than two clusters.

    Raises:
        ValueError: as `mcnemar`.
    """
    a, b = right_or_wrong(arm, reference)
    count, differ = len(np.unique(np.asarray(clusters))), float((a != b).sum())
    if count < 2:
        return float("nan")
    if differ == 0:
        return 1.0
    ratio = float((a - b).sum()) / sqrt(differ * design_effect(a - b, clusters))
    return student_p_value(ratio, count - 1)


def difference_of_shares(
    arm: ArrayLike,
    reference: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
) -> Estimate:
    """The arm's share of documents right less the reference's, with Tango's score interval (1998).

    The interval has the differences that a score test does not reject; at 0 that test is McNemar's.
    It holds its level where few documents differ, and has a width where none does, which a
    bootstrap's has not. Of documents in clusters it is the interval of as many documents as the
    design effect leaves, by Student's quantile.

    Args:
        arm, reference: (N,) results of 0 or 1 on the same documents.
        clusters: (N,) labels, such as prompts; None: every document stands alone.

    Returns:
        Difference, its standard error, low, high. NaN without documents; with a single cluster
        the difference alone is known.

    Raises:
        ValueError: as `mcnemar`.
    """
    a, b = right_or_wrong(arm, reference)
    n = len(a)
    if n == 0:
        return UNKNOWN
    gained, lost = float(((a == 1) & (b == 0)).sum()), float(((a == 0) & (b == 1)).sum())
    difference = (gained - lost) / n
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    if clusters is not None:
        _, sizes = cluster_sums(a, clusters)
        if len(sizes) == 1:
            return UNKNOWN._replace(estimate=difference)
        z = student_quantile((1 + confidence) / 2, effective_clusters(sizes) - 1)
    effect = design_effect(a - b, clusters)
    error = sqrt((gained + lost - (gained - lost) ** 2 / n) * effect) / n
    high = _tango_high(gained / effect, lost / effect, n / effect, z)
    low = -_tango_high(lost / effect, gained / effect, n / effect, z)
    return Estimate(difference, error, low, high)


def holm(p_values: ArrayLike) -> Array:
    """P-values adjusted for their number (Holm 1979), in their order; NaN stays and counts not.

    Those not above alpha are significant together: the chance of a single false one is at most
    alpha, however the tests depend on each other.
    """
    found = np.asarray(p_values, dtype=np.float64)
    if ((found < 0) | (found > 1)).any():
        raise ValueError("a p-value lies between 0 and 1")
    adjusted = np.full(found.shape, np.nan)
    order = np.argsort(found, kind="stable")[: int((~np.isnan(found)).sum())]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * found[order]))
    return adjusted


def student_p_value(ratio: float, freedom: int) -> float:
    """Two-sided p-value of an estimate `ratio` standard errors from 0, by Wallace (1959).

    Right to 1 % of itself down to p = 0.001 from 10 degrees of freedom up; saves scipy.
    """
    nu = float(freedom)
    z = (8 * nu + 1) / (8 * nu + 3) * sqrt(nu * log(1 + ratio**2 / nu))
    return erfc(z / sqrt(2))


def right_or_wrong(arm: ArrayLike, reference: ArrayLike) -> tuple[Array, Array]:
    """Both sides' results as numbers; ValueError unless all are 0 or 1 and there are as many."""
    a, b = np.asarray(arm, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"one result of the reference a document: shapes {a.shape}, {b.shape}")
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise ValueError("a result is neither 0 nor 1")
    return a, b


def _tango_high(gained: float, lost: float, n: float, z: float) -> float:
    """The largest difference that Tango's score test does not reject, by bisection."""

    def statistic(difference: float) -> float:
        # Tango's equations (6) to (8), for share right by the arm less share by the reference:
        # `share` is the likeliest share of documents that only the reference gets right.
        b = (2 * n - gained + lost) * difference - gained - lost
        c = -lost * difference * (1 - difference)
        share = (sqrt(b * b - 8 * n * c) - b) / (4 * n)
        variance = n * (2 * share + difference * (1 - difference))
        return (gained - lost - n * difference) / sqrt(variance) if variance > 0 else 0.0

    inside, outside = (gained - lost) / n, 1.0
    for _ in range(50):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if statistic(middle) > -z else (inside, middle)
    return inside
