"""How near methods come to the optimum: reward against KL, as shares of the best there is.

Rewards have no zero of their own (adding a constant to r changes no policy), so every share is of
the gain over pi_ref's mean reward, R_ref: (R - R_ref) / (R*(k) - R_ref). Prompts count equally.
Arms and draws of pi_ref are resampled together, prompt by prompt.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from betaflow.evaluation.bootstrap import (
    UNKNOWN,
    Estimate,
    cluster_sums,
    percentile_interval,
    prompt_weights,
)
from betaflow.evaluation.optimum import Array, Optimum, harmonic_mean, reward_at

STRIPS = 200  # of an area under the optimum


class Ceiling(NamedTuple):
    """R*(k) to plot, each (points,): `low` to `high` the pointwise band, `ess` harmonic means.

    `beta` is that of pi* there (infinite at a KL of 0), `log_z` its mean log Z(x), nats.
    """

    kl: Array
    reward: Array
    low: Array
    high: Array
    beta: Array
    log_z: Array
    ess: Array


class Fraction(NamedTuple):
    """An arm's gain over the optimum's at its KL, and what it is made of (means over prompts).

    `note` is empty, or says why `fraction` is NaN. Beyond the trusted range `optimum` is an upper
    bound of the best reward, so (reward - reference) / (optimum - reference) is a lower bound.
    """

    fraction: Estimate
    kl: float
    reward: float
    optimum: float
    reference: float
    note: str


class Area(NamedTuple):
    """`fraction` of the area between optimum and pi_ref's reward, for KLs of low_kl to high_kl.

    `resampled`: (resamples,) what it is on each resample of the prompts; empty where it is NaN.
    """

    fraction: Estimate
    low_kl: float
    high_kl: float
    resampled: Array


def ceiling(
    found: Optimum,
    *,
    points: int = 60,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Ceiling:
    """R*(k) from a KL of 0 to `trusted_kl`, densest near 0 where it rises fastest.

    Args:
        found: what `optimum.trace` returned.
        points: on the curve.
        resamples, confidence, seed: as in `bootstrap.mean_interval`, over prompts. A single
            prompt has a NaN band.
    """
    kl = found.trusted_kl * np.linspace(0, 1, points) ** 2
    prompts = len(found.reference)
    weights = prompt_weights(prompts, resamples, seed)
    resampled = reward_at(found, np.broadcast_to(kl, (resamples, points)), weights)
    reward = reward_at(found, kl)
    bands = [
        percentile_interval(float(value), column, prompts, confidence)
        for value, column in zip(reward, resampled.T, strict=True)
    ]
    low, high = np.array([band.low for band in bands]), np.array([band.high for band in bands])
    kls = np.maximum.accumulate(found.tilted.kl.mean(axis=0))
    ess = np.interp(kl, kls, [harmonic_mean(column) for column in found.tilted.ess.T])
    # From a KL of 0 on, where beta is infinite: 1 / beta rises from 0 along the curve.
    slopes = np.interp(kl, np.append(0.0, kls), np.append(0.0, 1 / found.betas))
    with np.errstate(divide="ignore"):
        beta = 1 / slopes
    # R*(k) - beta k = beta log Z (equation 4), at every k.
    log_z = reward * slopes - kl
    return Ceiling(kl, reward, low, high, beta, log_z, ess)


def fraction_of_optimum(
    rewards: ArrayLike,
    kls: ArrayLike,
    clusters: ArrayLike,
    found: Optimum,
    prompts: ArrayLike,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Fraction:
    """An arm's mean reward as a fraction of the optimum's at the arm's own mean KL.

    Args:
        rewards, kls: (N,) reward and KL (nats) of each of the arm's samples.
        clusters: (N,) prompt ids.
        found: what `optimum.trace` returned for draws of pi_ref.
        prompts: (prompts,) ids of its rows.
        resamples, confidence, seed: as in `bootstrap.mean_interval`, over prompts.

    Raises:
        ValueError: the arm and the draws do not cover the same prompts, an id stands for two
            rows, or a number is not finite.
    """
    reward = prompt_means(rewards, clusters, prompts)
    kl = prompt_means(kls, clusters, prompts)
    mean_reward, mean_kl = float(reward.mean()), float(kl.mean())
    best, reference = float(reward_at(found, mean_kl)), float(found.reference.mean())
    whole = Fraction(UNKNOWN, mean_kl, mean_reward, best, reference, "")
    if np.isclose(best, reference, rtol=1e-9, atol=0):
        return whole._replace(note="no KL to speak of: the optimum there gains nothing either")
    if mean_kl > found.trusted_kl:
        limit = f"{found.trusted_kl:.3g} nats"
        return whole._replace(note=f"its KL is beyond {limit}, up to which the draws tell R*")
    weights = prompt_weights(len(reward), resamples, seed)
    base = weights @ found.reference
    gains = reward_at(found, (weights @ kl)[:, None], weights)[:, 0] - base
    shares = (weights @ reward - base) / np.where(gains > 0, gains, np.nan)
    estimate = (mean_reward - reference) / (best - reference)
    fraction = percentile_interval(estimate, shares, len(reward), confidence)
    return whole._replace(fraction=fraction)


def area_fraction(
    rewards: ArrayLike,
    kls: ArrayLike,
    found: Optimum,
    low_kl: float,
    high_kl: float,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Area:
    """A method's whole frontier as a fraction of the optimum's: one number for a sweep of arms.

    The method's frontier is the upper concave hull of its arms' (mean KL, mean reward) and of
    pi_ref's (0, R_ref), level after its best reward. The hull, not the arms alone, because two
    policies mixed by a coin give the mean of their rewards at no more than the mean of their KLs
    (KL is convex): whatever is on the hull can be reached. The area between it and R_ref, over
    KLs from low_kl to high_kl or the trusted KL if that is less, is divided by the optimum's.

    A hull picks the arms that noise favours and so lies too high. The resamples show by how much,
    and the estimate and its interval are moved down by that: with 8 arms of 96 samples, from 5
    points too high to 2, and the 95 % interval's coverage from 67 % to 93 %.

    Args:
        rewards, kls: (arms, prompts) mean reward and KL of each arm on each prompt, the prompts
            in the order of `found`; see `prompt_means`.
        found: what `optimum.trace` returned for draws of pi_ref.
        low_kl, high_kl: nats, 0 <= low_kl < high_kl.
        resamples, confidence, seed: as in `bootstrap.mean_interval`, over prompts.

    Returns:
        The fraction and the range it is over. NaN where nothing of the range is trusted.

    Raises:
        ValueError: other shapes, a number that is not finite, or no such range.
    """
    reward, kl = np.asarray(rewards, dtype=np.float64), np.asarray(kls, dtype=np.float64)
    prompts = len(found.reference)
    if reward.ndim != 2 or reward.shape != kl.shape or reward.shape[1] != prompts:
        raise ValueError(f"not arms by {prompts} prompts: shapes {reward.shape} and {kl.shape}")
    if not (np.isfinite(reward).all() and np.isfinite(kl).all()):
        raise ValueError("a reward or KL is NaN or infinite")
    if not 0 <= low_kl < high_kl:
        raise ValueError(f"not a range of KLs: {low_kl} to {high_kl}")
    high_kl = min(high_kl, found.trusted_kl)
    if high_kl - low_kl < 1e-9:
        return Area(UNKNOWN, low_kl, high_kl, np.array([]))
    even = np.full((1, prompts), 1 / prompts)
    weights = np.concatenate([even, prompt_weights(prompts, resamples, seed)])
    at = low_kl + (high_kl - low_kl) * np.linspace(0, 1, STRIPS + 1) ** 2
    base = weights @ found.reference
    best = reward_at(found, np.broadcast_to(at, (len(weights), len(at))), weights)
    widths = np.diff(at, prepend=low_kl) / 2 + np.diff(at, append=high_kl) / 2  # trapezoids
    points = zip(weights @ kl.T, weights @ reward.T - base[:, None], strict=True)
    reached = np.array([hull_at(x, y, at) for x, y in points])
    shares = (reached @ widths) / ((best - base[:, None]) @ widths)
    excess = float(shares[1:].mean() - shares[0])
    raw = percentile_interval(float(shares[0] - excess), shares[1:], prompts, confidence)
    fraction = raw._replace(low=raw.low - 2 * excess, high=raw.high - 2 * excess)
    return Area(fraction, low_kl, high_kl, shares[1:] - 2 * excess)


def area_difference(one: Area, other: Area, prompts: int, confidence: float = 0.95) -> Estimate:
    """How much larger one method's area is than another's, as a fraction of the optimum's.

    Both are of the same resamples of the same prompts, so that what the prompts have in common
    falls out: intervals that overlap do not tell whether two methods differ, this does.

    Args:
        one, other: of `area_fraction`, with the same prompts, resamples and seed.
        prompts: how many there were.

    Returns:
        NaN where either is, or where they are of other ranges of KL or other resamples.
    """
    same = (one.low_kl, one.high_kl) == (other.low_kl, other.high_kl)
    if not same or not len(one.resampled) or one.resampled.shape != other.resampled.shape:
        return UNKNOWN
    estimate = one.fraction.estimate - other.fraction.estimate
    return percentile_interval(estimate, one.resampled - other.resampled, prompts, confidence)


def hull_at(kl: ArrayLike, gain: ArrayLike, at: ArrayLike) -> Array:
    """The upper concave hull of the points (kl, gain) and (0, 0), read at KLs `at` >= 0.

    Level after the largest gain. Points at a KL of 0 or less (noise) and below 0 are left out.
    """
    hull = [(0.0, 0.0)]
    for x, y in sorted(zip(np.asarray(kl), np.asarray(gain), strict=True)):
        if x <= 0 or y <= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], (x, y)):
            hull.pop()
        hull.append((x, y))
    xs, ys = np.array(hull).T
    return np.interp(np.asarray(at), xs, ys)


def prompt_means(values: ArrayLike, clusters: ArrayLike, prompts: ArrayLike) -> Array:
    """(prompts,) mean of each prompt's values, in the order of `prompts`.

    Args:
        values: (N,) numbers.
        clusters: (N,) prompt ids.
        prompts: (prompts,) ids, each once.

    Raises:
        ValueError: the ids are not the same set, one is there twice, or a value is not finite.
    """
    if not np.isfinite(np.asarray(values, dtype=np.float64)).all():
        raise ValueError("a reward or KL is NaN or infinite")
    names, order = np.asarray(prompts), np.unique(clusters)
    if len(np.unique(names)) != len(names):
        raise ValueError("a prompt is there twice among the draws")
    if not np.array_equal(np.sort(names), order):
        missing = np.setxor1d(names, order)
        raise ValueError(f"the arm and the draws differ in {len(missing)} prompts: {missing[:3]}")
    sums, sizes = cluster_sums(values, clusters)
    return (sums / sizes)[np.searchsorted(order, names)]


def _slope(start: tuple[float, float], end: tuple[float, float]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])
