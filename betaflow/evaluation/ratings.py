"""Bradley-Terry ratings of all arms at once.

P(a is preferred to b) = sigma(r_a - r_b) (Bradley and Terry 1952). A tie is half a win of either
side. The likelihood is concave; it has a maximum where every arm can be reached from every other by
comparisons, and a finite one by a small prior: each compared pair has half a win and half a loss
besides, divided by the number of opponents of whichever of the two has fewer. So an arm that never
lost is rated as if it had lost one half of a verdict. Between two arms it is the log-F(1, 1) prior
(Greenland and Mansournia 2015), the Jeffreys prior of the win rate.

Intervals are from the Bayesian bootstrap over prompts (Rubin 1981): a prompt weighs Exp(1), the
prior's wins and losses Gamma of their size (Muliere and Secchi 1996). For two arms that is
Jeffreys' interval, which covers well up to 0 and 1 (Brown, Cai and DasGupta 2001); the resamples
of an arm that never lost differ too, and no resample loses a comparison that holds arms together.
"""

from __future__ import annotations

from math import log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from betaflow.evaluation.bootstrap import Estimate, effective_clusters, percentile_interval
from betaflow.evaluation.pairwise import paired

Array = NDArray[np.float64]
PRIOR = 0.5  # wins, and losses
LEAST = 1e-12  # of the prior in a resample: keeps log-odds below 30 or so
STEPS, LONGEST_STEP, TOLERANCE = 100, 2.0, 1e-9  # of Newton's method, in log-odds
ELO = 400 / log(10)  # points a unit of log-odds


def bradley_terry(
    left: ArrayLike,
    right: ArrayLike,
    preferences: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    anchor: str | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """The rating of every arm, by joint maximum likelihood with the prior above.

    Args:
        left, right: (N,) names of the two arms of each verdict, in either order.
        preferences: (N,) in [0, 1], of left over right, soft labels among them; NaN is left out.
        clusters: (N,) labels, such as prompt ids; None: every verdict stands alone. All verdicts on
            a prompt, of whichever arms, are drawn together.
        anchor: the arm whose rating is 0, such as "sft"; None: the mean rating is 0.
        resamples: of the Bayesian bootstrap, the same for all arms.
        confidence, seed: as in `bootstrap.mean_interval`.

    Returns:
        By arm, in the order in which they first come up: log-odds (natural; `elo` scales them) over
        the anchor, or over the mean arm, with the expanded percentile interval. The anchor's is 0
        without width. With a single cluster intervals are NaN.

    Raises:
        ValueError: as `pairwise.pairwise_matrix`; there is no such anchor; or no chain of
            comparisons joins two arms, which leaves their difference open.
    """
    found = paired(left, right, preferences, clusters)
    if anchor is not None and anchor not in found.arms:
        raise ValueError(f"no verdict is about {anchor}")
    arms, count = len(found.arms), int(found.cluster.max(initial=-1)) + 1
    pairs, pair = np.unique(
        np.stack([found.first, found.second], axis=1), axis=0, return_inverse=True
    )
    _check_joined(found.arms, pairs)
    cell = found.cluster * len(pairs) + pair.ravel()
    cells = (count, len(pairs))
    wins = np.bincount(cell, found.preferences, count * len(pairs)).reshape(cells)
    verdicts = np.bincount(cell, minlength=count * len(pairs)).reshape(cells)
    opponents = np.bincount(pairs.ravel(), minlength=arms)
    prior = PRIOR / opponents[pairs].min(axis=1)

    effective = effective_clusters(verdicts.sum(axis=1)) if count > 1 else count
    weights, extra = _bayesian_weights(count, prior, resamples, seed)
    won = np.concatenate([[wins.sum(axis=0) + prior], weights @ wins + extra[0]])
    lost = np.concatenate(
        [[(verdicts - wins).sum(axis=0) + prior], weights @ (verdicts - wins) + extra[1]]
    )
    ratings = _fit(won, lost, pairs, arms)
    zero = ratings.mean(axis=1) if anchor is None else ratings[:, found.arms.index(anchor)]
    ratings -= zero[:, None]
    return {
        name: Estimate(0.0, 0.0, 0.0, 0.0)
        if name == anchor
        else _holding(percentile_interval(float(column[0]), column[1:], effective, confidence))
        for name, column in zip(found.arms, ratings.T, strict=True)
    }


def _holding(found: Estimate) -> Estimate:
    """Its interval with the estimate in it, which a wide prior's resamples may all lie beside."""
    return found._replace(low=min(found.low, found.estimate), high=max(found.high, found.estimate))


def elo(rating: Estimate) -> Estimate:
    """A rating in points of the Elo scale: 400 for odds of ten to one."""
    return Estimate(*(ELO * number for number in rating))


def _check_joined(arms: list[str], pairs: NDArray[np.intp]) -> None:
    """Raise ValueError unless the pairs join all arms."""
    if len(pairs) == 0:
        raise ValueError("there is no verdict")
    group = list(range(len(arms)))
    for first, second in pairs:
        group = [group[first] if one == group[second] else one for one in group]
    apart = [name for name, one in zip(arms, group, strict=True) if one != group[0]]
    if apart:
        raise ValueError(f"no chain of comparisons joins {arms[0]} and {apart[0]}")


def _bayesian_weights(
    clusters: int, prior: Array, resamples: int, seed: int
) -> tuple[Array, Array]:
    """(R, clusters) weights of the clusters; (2, R, pairs) wins and losses of the prior."""
    random = np.random.Generator(np.random.PCG64(seed))
    weights = random.standard_exponential((resamples, clusters))
    extra = random.standard_gamma(prior, size=(2, resamples, len(prior)))
    return weights, np.maximum(extra, LEAST)


def _fit(won: Array, lost: Array, pairs: NDArray[np.intp], arms: int) -> Array:
    """(R, arms) ratings, the first 0, of the highest likelihood, by Newton's method.

    Args:
        won, lost: (R, pairs) above 0: wins of each pair's first arm and of its second.
    """
    signs = np.zeros((len(pairs), arms))
    rows = np.arange(len(pairs))
    signs[rows, pairs[:, 0]], signs[rows, pairs[:, 1]] = 1, -1
    signs = signs[:, 1:]  # the first arm stays at 0
    products = (signs[:, :, None] * signs[:, None, :]).reshape(len(pairs), -1)
    ratings = np.zeros((len(won), arms - 1))
    for _ in range(STEPS):
        odds = np.exp(ratings @ signs.T)
        chance, against = odds / (1 + odds), 1 / (1 + odds)
        gradient = (won * against - lost * chance) @ signs
        hessian = ((won + lost) * chance * against) @ products
        step = np.linalg.solve(hessian.reshape(-1, arms - 1, arms - 1), gradient[..., None])[..., 0]
        largest = np.abs(step).max(axis=1, keepdims=True)
        ratings += step * np.minimum(1, LONGEST_STEP / np.maximum(largest, LONGEST_STEP))
        if (largest < TOLERANCE).all():
            break
    else:
        raise ValueError(f"the ratings are too far apart: not found in {STEPS} steps")
    return np.concatenate([np.zeros((len(won), 1)), ratings], axis=1)
