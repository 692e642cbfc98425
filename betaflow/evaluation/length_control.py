"""Length-controlled win rates: how often would an arm win if both completions were equally long?

Judges favour long completions. Dubois et al. 2024, "Length-Controlled AlpacaEval", fit a logistic
model to an arm's verdicts y_i,

    P(y_i) = sigma(theta + phi t_i),    t_i = tanh(d_i / s),

with d_i the arm's length less the other's and s the standard deviation of the d_i, and report
sigma(theta), the win rate at d = 0. Here what lies outside of the first and the 99th percentile of
the d_i counts for s as these: one completion that runs on to the limit would make all other t_i
small. Their third term, how hard a prompt is, is left out: it has to be learned from many other
arms' verdicts on the same prompts.

Nothing pulls at theta, so arms of equal lengths get their plain win rate. phi has a weak prior:
half a win and half a loss at t = 1 between sides that are otherwise equal. It is the log-F(1, 1)
prior of Greenland and Mansournia 2015, whose middle 95 % lies between -6.5 and 6.5; the 200 arms of
AlpacaEval's leaderboard have phi from 0.2 to 3. It keeps phi finite where length alone tells wins
from losses, and decides where the data can't: where one side is longer by about as much each time.
"""

from __future__ import annotations

from math import log, sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from betaflow.evaluation.bootstrap import (
    BLOCK,
    UNKNOWN,
    Estimate,
    effective_clusters,
    prompt_weights,
    student_quantile,
)
from betaflow.evaluation.win_rate import no_surer, win_rate

Array = NDArray[np.float64]
OUTER = (0.01, 0.99)  # of the length differences, drawn in for their spread
PRIOR = 0.5  # wins, and losses, at t = 1 and theta = 0
FARTHEST = 30.0  # log-odds beyond which a rate is 0 or 1
LEAST = 1e-4  # of the prior in a resample: keeps phi within reach
TINY = 1e-12
STEPS, LONGEST_STEP, TOLERANCE = 100, 2.0, 1e-9  # of Newton's method, in log-odds
HALVINGS, CLOSE = 30, 1e-6  # of the interval's ends, and how near phi is to its best there


class Verdicts(NamedTuple):
    """(N,) preferences, their t, and the number of their cluster."""

    wins: Array
    terms: Array
    cluster: NDArray[np.intp]


def length_controlled_win_rate(
    preferences: ArrayLike,
    lengths: ArrayLike,
    baseline_lengths: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The win rate with the effect of length taken out, by the model above.

    The standard error is that of the model fitted anew to each resample of the clusters, with s as
    in the data. In a resample the prior's half win and half loss weigh what Gamma(1/2) draws, as in
    the proper Bayesian bootstrap (Muliere and Secchi 1996): where the data say nothing about phi,
    the resamples spread as the prior does. The interval has the thetas that Rao's score test does
    not reject, its variance scaled by the design effect: the standard error's square over that of
    independent verdicts of 0 and 1, and no less than independence gives (1; less with ties and soft
    labels), as a handful of losses may look surer by chance. Without length differences the score
    interval is Wilson's, as in `win_rate`; near 0 and 1 it covers more truly than Wilson's about
    the controlled rate. As in `win_rate` it is no surer than what unanimous verdicts with these
    lengths leave open.

    Args:
        preferences: (N,) numbers in [0, 1], soft labels among them; NaN, a missing verdict, is left
            out.
        lengths, baseline_lengths: (N,) lengths of the two completions, in one unit (characters,
            tokens): the arm's whose wins are counted, and the other's.
        clusters: (N,) labels, such as prompt ids; None: every preference stands alone.
        resamples, confidence, seed: as in `bootstrap.mean_interval`, with the same resamples.

    Returns:
        Estimate, standard error, low, high. The same as `win_rate` where all lengths are equal in
        pairs. Swapping the sides gives 1 - estimate and the mirrored interval. Of all wins (losses)
        the estimate is 1 (0), with the score interval for as many verdicts as clusters. NaN as in
        `bootstrap.mean_interval`.

    Raises:
        ValueError: a preference outside [0, 1], a length of a judged pair that is not finite, or
            other shapes.
    """
    verdicts = _verdicts(preferences, lengths, baseline_lengths, clusters)
    wins, terms, cluster = verdicts
    if not terms.any():
        return win_rate(wins, cluster, resamples=resamples, confidence=confidence, seed=seed)
    rate = float(_rates(np.ones((1, len(wins))), verdicts, np.full((1, 2), PRIOR))[0])
    count = int(cluster.max()) + 1
    if count == 1:
        return UNKNOWN._replace(estimate=rate)
    weights = np.rint(count * prompt_weights(count, resamples, seed))  # how often each was drawn
    random = np.random.Generator(np.random.PCG64([seed, 1]))  # apart from that of the clusters
    prior = np.maximum(random.standard_gamma(PRIOR, (resamples, 2)), LEAST)
    block = max(1, BLOCK // len(wins))
    resampled = np.concatenate(
        [
            _rates(weights[start : start + block, cluster], verdicts, prior[start : start + block])
            for start in range(0, resamples, block)
        ]
    )
    error = float(resampled.std(ddof=1)) * sqrt(count / (count - 1))
    low, high = _score_interval(rate, error, verdicts, count, confidence)
    all_won = verdicts._replace(wins=np.ones_like(wins))
    unanimous, _ = _score_interval(1.0, 0.0, all_won, count, confidence)
    return Estimate(rate, error, *no_surer(rate, low, high, unanimous))


def _verdicts(
    preferences: ArrayLike,
    lengths: ArrayLike,
    baseline_lengths: ArrayLike,
    clusters: ArrayLike | None,
) -> Verdicts:
    wins, own, other = (
        np.asarray(x, dtype=np.float64) for x in (preferences, lengths, baseline_lengths)
    )
    labels = np.arange(len(wins)) if clusters is None else np.asarray(clusters)
    if wins.ndim != 1 or not wins.shape == own.shape == other.shape == labels.shape:
        raise ValueError(
            "one length of either side and one cluster a preference: got shapes "
            f"{wins.shape}, {own.shape}, {other.shape} and {labels.shape}"
        )
    if ((wins < 0) | (wins > 1)).any():
        raise ValueError("a preference lies between 0 and 1")
    known = ~np.isnan(wins)
    longer = (own - other)[known]
    if not np.isfinite(longer).all():
        raise ValueError("a length is NaN or infinite")
    # One that runs on to the limit must not decide the unit of all others.
    spread = np.clip(longer, *np.quantile(longer, OUTER)).std() if len(longer) else 0.0
    # All longer by the same: the limit of a spread that goes to 0.
    terms = np.tanh(longer / spread) if spread > 0 else np.sign(longer)
    return Verdicts(wins[known], terms, np.unique(labels[known], return_inverse=True)[1])


def _rates(weights: Array, verdicts: Verdicts, prior: Array) -> Array:
    """(R,) sigma(theta) of the fits to verdicts with weights (R, N) and prior (R, 2).

    The prior is wins and losses at t = 1, theta = 0. 0 or 1 where all weight is on losses or wins.
    """
    wins, terms, _ = verdicts
    total, won = weights.sum(axis=1), weights @ wins
    rates = (won > 0).astype(np.float64)
    open_ = np.flatnonzero((won > 0) & (won < total))
    target = np.stack([won, weights @ (wins * terms) + prior[:, 0]], axis=1)
    powers = np.stack([np.ones_like(terms), terms, terms**2], axis=1)
    theta, phi = np.log(won[open_] / (total - won)[open_]), np.zeros(len(open_))
    rows = np.arange(len(open_))  # of the fits that still move: Newton's method, steps bounded
    for _ in range(STEPS):
        kept = open_[rows]
        chance = _sigmoid(theta[rows, None] + phi[rows, None] * terms)
        expected = weights[kept] * chance
        at_prior, both = _sigmoid(phi[rows]), prior[kept].sum(axis=1)
        gradient = target[kept] - expected @ powers[:, :2]
        gradient[:, 1] -= both * at_prior
        first, mixed, second = ((expected * (1 - chance)) @ powers).T
        second = second + both * at_prior * (1 - at_prior)
        slope = mixed / np.maximum(first, TINY)  # of theta against phi
        information = np.maximum(second - slope * mixed, TINY)
        longer = (gradient[:, 1] - slope * gradient[:, 0]) / information
        higher = gradient[:, 0] / np.maximum(first, TINY) - slope * longer
        size = np.maximum(np.abs(higher), np.abs(longer))
        bound = np.minimum(1, LONGEST_STEP / np.maximum(size, LONGEST_STEP))
        theta[rows] += bound * higher
        phi[rows] += bound * longer
        rows = rows[size > TOLERANCE]
        if len(rows) == 0:
            break
    rates[open_] = _sigmoid(theta)
    return rates


def _score_interval(
    rate: float, error: float, verdicts: Verdicts, clusters: int, confidence: float
) -> tuple[float, float]:
    """Ends, as rates, of the thetas with score^2 <= z^2 * design effect * information."""
    few = effective_clusters(np.bincount(verdicts.cluster))
    decided = rate in (0.0, 1.0)
    theta = FARTHEST * (2 * rate - 1) if decided else log(rate / (1 - rate))
    _, information, phi = _score(np.full(2, theta), np.zeros(2), verdicts)
    if decided:
        effect = len(verdicts.wins) / few
    else:
        independent = rate * (1 - rate) / sqrt(information[0])  # the error of 0/1 verdicts, alone
        chance = _sigmoid(theta + phi[0] * verdicts.terms)
        hard = 1 - (verdicts.wins @ (1 - verdicts.wins)) / (chance @ (1 - chance))
        effect = max((error / independent) ** 2, hard)
    level = (1 + confidence) / 2
    unequal = student_quantile(level, few - 1) / student_quantile(level, clusters - 1)
    limit = (NormalDist().inv_cdf(level) * unequal) ** 2 * effect
    inside, outside = np.full(2, theta), np.array([-FARTHEST, FARTHEST])
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        score, information, phi = _score(middle, phi, verdicts)
        rejected = score**2 > limit * information
        inside, outside = np.where(rejected, inside, middle), np.where(rejected, middle, outside)
    low, high = np.where(np.abs(inside) > FARTHEST - 1e-6, inside > 0, _sigmoid(inside))
    return float(low), float(high)


def _score(theta: Array, phi: Array, verdicts: Verdicts) -> tuple[Array, Array, Array]:
    """d log L / d theta at (K,) thetas, the information left for theta, and each theta's best phi.

    Args:
        phi: (K,) from where to look for it.
    """
    wins, terms, _ = verdicts
    for _ in range(STEPS):
        chance, at_prior = _sigmoid(theta[:, None] + phi[:, None] * terms), _sigmoid(phi)
        variance, of_prior = chance * (1 - chance), 2 * PRIOR * at_prior * (1 - at_prior)
        missed = wins - chance
        second = variance @ terms**2 + of_prior
        step = (missed @ terms + PRIOR - 2 * PRIOR * at_prior) / second
        phi = phi + np.clip(step, -LONGEST_STEP, LONGEST_STEP)
        if np.abs(step).max() < CLOSE:
            break
    return missed.sum(axis=1), variance.sum(axis=1) - (variance @ terms) ** 2 / second, phi


def _sigmoid(x: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * x))
