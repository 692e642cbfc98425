"""Over-optimisation: how the gold reward rises and falls with the distance from the reference.

With d = sqrt(KL(policy||reference)), KL in nats, and R the gold reward less the start's, Gao,
Schulman and Hilton, "Scaling Laws for Reward Model Overoptimization" (2022), section 1, find

    rl:   R(d) = d (alpha - beta log d)     peak at d = exp(alpha / beta - 1)
    bon:  R(d) = d (alpha - beta d)         peak at d = alpha / (2 beta)

for reinforcement learning and for best-of-n. Rafailov et al., "Scaling Laws for Reward Model
Overoptimization in Direct Alignment Algorithms" (2024), fit the first to DPO. Both are linear in
alpha and beta, so the fit is a least-squares solution, not a search.

A curve is one run: a seed, or a setting of beta. The points of one run resemble each other, so
whole runs are held out and drawn again, never single points.
"""

from __future__ import annotations

from math import exp, inf, nan, sqrt
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from betaflow.evaluation.bootstrap import UNKNOWN, Estimate, student_quantile

Form = Literal["rl", "bon"]
Floats = NDArray[np.float64]

SPLITS = 10  # halvings of the prompts over which a cross-fitted value is averaged
FEWEST_PROMPTS = 8  # below, halves of prompts are too small to choose a peak
FLAT = 1e-6  # ratio of the design's singular values below which the d hardly differ


class Fit(NamedTuple):
    """A fitted curve. Where `reason` is not empty there is none, and every number is NaN.

    peak_d and peak_reward are inf where the curve never turns down (beta <= 0). A peak beyond the
    largest d that was fitted is an extrapolation.
    """

    form: Form
    alpha: float
    beta: float
    peak_d: float
    peak_reward: float
    rmse: float  # in sample, in the reward's unit
    points: int  # with d > 0
    reason: str


class Score(NamedTuple):
    """How well rewards that were not fitted are predicted. NaN where `reason` is not empty."""

    rmse: float  # in the reward's unit
    r2: float  # 1 - squared error / squared deviation of the held-out rewards from their mean
    points: int  # held out
    reason: str


class HeldOut(NamedTuple):
    """Errors on unseen runs and on unseen distances."""

    form: Form
    unseen_curve: Score
    extrapolation: Score


class FitIntervals(NamedTuple):
    """A fitted curve's coefficients and where it peaks, with intervals."""

    form: Form
    alpha: Estimate
    beta: Estimate
    peak_d: Estimate  # the standard error of a ratio does not exist: NaN
    reason: str  # why there is no fit, or no interval; empty if all is there


class GoldPeak(NamedTuple):
    """Where the measured gold reward peaks, and what is lost after. NaN where `reason` says so."""

    step: Estimate
    d: Estimate  # sqrt(nats), at `step`
    highest: float  # the highest mean of all points: biased upwards, not to be reported alone
    reward: Estimate  # at a peak that other prompts chose
    decline: Estimate  # `reward` less the last point's, on the same prompts
    prompts: int
    reason: str


def reward_at(d: ArrayLike, alpha: float, beta: float, form: Form) -> Floats:
    """(N,) rewards R(d) of a fitted curve; R(0) = 0."""
    return _design(_distances(d), form) @ np.array([alpha, beta])


def fit(d: ArrayLike, reward: ArrayLike, form: Form) -> Fit:
    """Alpha and beta by exact least squares.

    Args:
        d: (N,) square roots of the KL from the reference in nats. Points with d = 0 are left
            out: both forms are 0 there whatever alpha and beta.
        reward: (N,) gold rewards less the start's.
        form: "rl" or "bon".

    Returns:
        The fit; without three distinct d > 0 every number is NaN and `reason` says why.

    Raises:
        ValueError: the shapes differ; a d is negative; anything is NaN or infinite.
    """
    x, y, _ = _points(d, reward, form)
    if y.ndim != 1:
        raise ValueError(f"one reward a d: got shape {y.shape}; take the mean over prompts")
    if len(np.unique(x)) < 3:
        return Fit(form, nan, nan, nan, nan, nan, len(x), "fewer than three distinct d above 0")
    design = _design(x, form)
    (alpha, beta), _, rank, _ = np.linalg.lstsq(design, y, rcond=FLAT)
    if rank < 2:
        return Fit(form, nan, nan, nan, nan, nan, len(x), "the d hardly differ")
    error = y - design @ np.array([alpha, beta])
    rmse = sqrt(float((error**2).mean()))
    peak_d, peak_reward = _peak(float(alpha), float(beta), form)
    return Fit(form, float(alpha), float(beta), peak_d, peak_reward, rmse, len(x), "")


def held_out_error(
    d: ArrayLike, reward: ArrayLike, curves: ArrayLike, form: Form, *, quantile: float = 0.5
) -> HeldOut:
    """How well the form predicts runs and distances it was not fitted on.

    `unseen_curve` is leave-one-curve-out cross-validation: each run is predicted from all others.
    `extrapolation` fits all runs' points up to a quantile of d and predicts those beyond. An r2
    of 0 or less says that the held-out rewards' own mean does as well.

    Args:
        d, reward, form: as in `fit`.
        curves: (N,) labels, the run of each point.
        quantile: of the d > 0, in (0, 1), up to which the extrapolation is fitted.

    Raises:
        ValueError: as `fit`, or the labels are not one a point.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"a quantile between 0 and 1 splits the points, not {quantile}")
    x, y, labels = _points(d, reward, form, curves)
    runs = [labels == name for name in np.unique(labels)]
    beyond = x > np.quantile(x, quantile) if len(x) else labels > 0
    return HeldOut(form, _held_out(x, y, runs, form), _held_out(x, y, [beyond], form))


def fit_intervals(
    d: ArrayLike,
    reward: ArrayLike,
    form: Form,
    *,
    curves: ArrayLike | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> FitIntervals:
    """Bootstrap intervals of alpha, beta and the peak over curves, prompts or both.

    Curves answer "what would other runs give", prompts "what would other prompts give"; with both
    the two variances are added, Student's degrees of freedom being Satterthwaite's (1946). The d
    are taken as known. The ends are Student's, on the bootstrap standard error: with 3 curves the
    percentile interval would cover 80 % instead of 95 %. The peak is a function of alpha / beta
    alone, and its interval is Fieller's (1954) for that ratio, from the bootstrap covariance; its
    high end is inf where beta may be 0, that is, where a peak is not shown.

    Args:
        d, form: as in `fit`.
        reward: (N,), as in `fit`; or (N, P) for prompts drawn again: each prompt's mean gold
            reward less its own at the start. A prompt with a NaN is left out of all points.
        curves: (N,) labels, the run of each point; None: the runs are held fixed.
        resamples, confidence, seed: as in `bootstrap.mean_interval`.

    Returns:
        Estimates as `fit` gives them on the mean over prompts, the standard errors and ends. With
        a single curve or prompt to draw from, errors and ends are NaN and `reason` says so.

    Raises:
        ValueError: as `fit`, or there is nothing to draw from (no curves and no prompts).
    """
    values = np.asarray(reward, dtype=np.float64)
    by_curve, by_prompt = curves is not None, values.ndim == 2
    if not by_curve and not by_prompt:
        raise ValueError("nothing to draw again: give curves, or a column of rewards per prompt")
    columns = _whole(values) if by_prompt else values[:, None]
    if columns.shape[1] == 0:
        nothing = "no prompt was measured at every point"
        return FitIntervals(form, UNKNOWN, UNKNOWN, UNKNOWN, nothing)
    means = columns.mean(axis=1)
    found = fit(d, means, form)
    alpha, beta, peak = (UNKNOWN._replace(estimate=number) for number in found[1:4])
    if found.reason:
        return FitIntervals(form, alpha, beta, peak, found.reason)
    _, _, labels = _points(d, means, form, curves)
    curve_count, prompt_count = int(labels.max()) + 1, columns.shape[1]
    counts = [curve_count] * by_curve + [prompt_count] * by_prompt
    if min(counts) < 2:
        return FitIntervals(form, alpha, beta, peak, "a single curve or prompt to draw from")

    random = np.random.Generator(np.random.PCG64(seed))
    once = (np.ones((resamples, curve_count)), np.ones((resamples, prompt_count)))
    draws = [(_counts(curve_count, resamples, random), once[1])] * by_curve
    draws += [(once[0], _counts(prompt_count, resamples, random))] * by_prompt
    thetas = [_refit(d, columns, form, curves, *each) for each in draws]
    if min(map(len, thetas)) < 2:
        return FitIntervals(form, alpha, beta, peak, "the resamples fix no curve")
    return _intervals(found, thetas, counts, (1 + confidence) / 2)


def gold_peak(
    steps: ArrayLike,
    d: ArrayLike,
    gold: ArrayLike,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> GoldPeak:
    """Where the measured gold reward of a run peaks, and whether it falls after.

    The highest of several noisy means is too high on average (the winner's curse), and so is its
    lead over the last. So one half of the prompts chooses the peak and the other half measures
    it, both ways round, averaged over `SPLITS` halvings (cross-fitting). What remains errs the
    other way: the reward is that of the point chosen, which the true peak can only exceed. The
    fall is shown where `decline.low` is above 0.

    Args:
        steps: (N,) training steps of the evaluations, distinct, in any order.
        d: (N,) square roots of the KL from the reference in nats.
        gold: (N, P) mean gold reward of each prompt at each evaluation. A prompt with a NaN is
            left out of all points. For several runs with the same steps, give the mean of their
            matrices; the intervals are then for these runs.
        resamples, confidence, seed: as in `bootstrap.mean_interval`; prompts are drawn.

    Returns:
        `step` and `d` are those of the highest mean, with percentiles of where the resamples
        peak. `reward` and `decline` are cross-fitted, their ends Student's on the standard error
        of the whole procedure, choice of the peak included. With fewer than two evaluations or
        `FEWEST_PROMPTS` prompts all is NaN and `reason` says why.

    Raises:
        ValueError: the shapes differ; a step is there twice; a d is negative or NaN.
    """
    when, where = np.asarray(steps, dtype=np.float64), _distances(d)
    values = np.asarray(gold, dtype=np.float64)
    if when.shape != where.shape or values.ndim != 2 or len(values) != len(when):
        raise ValueError(f"a step, a d and a row: got {when.shape}, {where.shape}, {values.shape}")
    if not np.isfinite(when).all() or len(np.unique(when)) < len(when):
        raise ValueError("the steps must be distinct numbers")
    order = np.argsort(when)
    when, where, values = when[order], where[order], _whole(values)[order]
    prompts = values.shape[1]
    if len(when) < 2 or prompts < FEWEST_PROMPTS:
        reason = f"{len(when)} evaluations of {prompts} prompts are too few to find a peak"
        return GoldPeak(UNKNOWN, UNKNOWN, nan, UNKNOWN, UNKNOWN, prompts, reason)

    means = values.mean(axis=1)
    top = int(means.argmax())
    random = np.random.Generator(np.random.PCG64(seed))
    halves = random.random((SPLITS, prompts)).argsort(axis=1) < prompts // 2
    counts = _counts(prompts, resamples, random)
    tops = (counts @ values.T).argmax(axis=1)
    whole = ((counts @ halves.T > 0) & (counts @ ~halves.T > 0)).all(axis=1)  # no half empty
    reward, decline = _cross_fitted(values, halves, np.ones((1, prompts)))[0]
    errors = _cross_fitted(values, halves, counts[whole]).std(axis=0, ddof=1)
    errors *= sqrt(prompts / (prompts - 1))
    t = student_quantile((1 + confidence) / 2, prompts - 1)
    return GoldPeak(
        _percentiles(when[top], when[tops], confidence),
        _percentiles(where[top], where[tops], confidence),
        float(means[top]),
        _student(reward, errors[0], t),
        _student(decline, errors[1], t),
        prompts,
        "",
    )


def _design(d: Floats, form: Form) -> Floats:
    """(N, 2) columns that alpha and beta multiply."""
    bend = np.log(np.where(d > 0, d, 1.0)) if form == "rl" else d
    return np.stack([d, -d * bend], axis=1)


def _peak(alpha: float, beta: float, form: Form) -> tuple[float, float]:
    """Distance and reward of the curve's highest point, d >= 0."""
    if beta <= 0:
        return inf, inf
    at = _peak_distance(alpha / beta, form)
    return at, beta * (at if form == "rl" else at**2)


def _peak_distance(ratio: float, form: Form) -> float:
    """The peak for alpha / beta; a "bon" curve with alpha < 0 only falls, from d = 0."""
    if form == "bon":
        return max(ratio / 2, 0.0)
    return exp(ratio - 1) if ratio < 700 else inf


def _peak_interval(
    alpha: float, beta: float, covariance: Floats, t: float, form: Form
) -> tuple[float, float]:
    """Fieller's interval for alpha / beta, taken to the peak; inf stands for "no peak".

    It holds the ratios u for which alpha - u beta is within t standard errors of 0:
    u^2 a - 2 u b + c <= 0. Where beta is not told from 0 (a <= 0) the set is unbounded.
    """
    aa, ab, bb = covariance[0, 0], covariance[0, 1], covariance[1, 1]
    a, b, c = beta**2 - t * t * bb, alpha * beta - t * t * ab, alpha**2 - t * t * aa
    if a > 0 and beta < 0:
        return inf, inf
    inside = b * b - a * c
    if a == 0 or (a < 0 and inside < 0):
        return 0.0, inf
    near, far = sorted((b + side * sqrt(max(inside, 0.0))) / a for side in (-1, 1))
    if a > 0:
        return _peak_distance(near, form), _peak_distance(far, form)
    if alpha * bb > ab * beta:  # the set reaches beta = 0 with alpha > 0: a curve that only rises
        return _peak_distance(far, form), inf
    return 0.0, _peak_distance(near, form)


def _held_out(x: Floats, y: Floats, parts: list[NDArray[np.bool_]], form: Form) -> Score:
    """Each part predicted from the points outside it."""
    held, predicted = np.zeros(len(x), dtype=bool), np.zeros(len(x))
    for part in parts:
        found = fit(x[~part], y[~part], form)
        if found.reason:
            return Score(nan, nan, 0, f"without the points held out: {found.reason}")
        predicted[part] = reward_at(x[part], found.alpha, found.beta, form)
        held |= part
    if not held.any():
        return Score(nan, nan, 0, "no points to hold out")
    error = float(((y - predicted)[held] ** 2).mean())
    spread = float(y[held].var())
    return Score(sqrt(error), 1 - error / spread if spread > 0 else nan, int(held.sum()), "")


def _intervals(found: Fit, thetas: list[Floats], counts: list[int], level: float) -> FitIntervals:
    """Intervals from (resamples, 2) alpha and beta for each kind of cluster, `counts` of them."""
    parts = np.stack(
        [np.cov(each.T) * count / (count - 1) for each, count in zip(thetas, counts, strict=True)]
    )
    covariance = parts.sum(axis=0)
    ratio = found.alpha / found.beta if found.beta else 0.0
    t = [
        student_quantile(level, _freedom(direction @ parts @ direction, counts))
        for direction in np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -ratio]])
    ]
    low, high = _peak_interval(found.alpha, found.beta, covariance, t[2], found.form)
    return FitIntervals(
        found.form,
        _student(found.alpha, sqrt(covariance[0, 0]), t[0]),
        _student(found.beta, sqrt(covariance[1, 1]), t[1]),
        Estimate(found.peak_d, nan, low, high),
        "",
    )


def _refit(
    d: ArrayLike,
    columns: Floats,
    form: Form,
    curves: ArrayLike | None,
    runs: Floats,
    prompts: Floats,
) -> Floats:
    """(resamples, 2) alpha and beta by the normal equations, summed over the curves drawn.

    `runs` (resamples, curves) and `prompts` (resamples, P) say how often each was drawn. A
    resample that fixes no curve is left out.
    """
    x, y, labels = _points(d, columns, form, curves)
    design = _design(x, form)
    count = runs.shape[1]
    grams, moments = np.zeros((count, 2, 2)), np.zeros((count, 2, y.shape[1]))
    np.add.at(grams, labels, design[:, :, None] * design[:, None, :])
    np.add.at(moments, labels, design[:, :, None] * y[:, None, :])
    gram = np.tensordot(runs, grams, axes=1)
    moment = np.einsum("rip,rp->ri", np.tensordot(runs, moments, axes=1), prompts)
    moment /= prompts.sum(axis=1, keepdims=True)
    size = np.trace(gram, axis1=1, axis2=2)
    known = np.linalg.det(gram) > (FLAT * size) ** 2
    return np.linalg.solve(gram[known], moment[known][:, :, None])[:, :, 0]


def _cross_fitted(gold: Floats, halves: NDArray[np.bool_], counts: Floats) -> Floats:
    """(draws, 2) reward at the peak, and its lead over the last point, each draw cross-fitted.

    A prompt drawn several times stays in its half, so the halves never share one.
    """
    total, row = np.zeros((len(counts), 2)), np.arange(len(counts))
    for half in halves:
        sides = [counts * half, counts * ~half]
        one, other = (side @ gold.T / side.sum(axis=1, keepdims=True) for side in sides)
        for chooser, judge in ((one, other), (other, one)):
            reward = judge[row, chooser.argmax(axis=1)]
            total += np.stack([reward, reward - judge[:, -1]], axis=1)
    return total / (2 * len(halves))


def _counts(count: int, resamples: int, random: np.random.Generator) -> Floats:
    """(resamples, count) how often each was drawn."""
    return random.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def _freedom(variances: Floats, counts: list[int]) -> int:
    """Satterthwaite's degrees of freedom of a sum of variances, each from `counts` clusters."""
    shares = variances / (variances.sum() or 1.0)
    return max(1, round(1 / max(float((shares**2 / (np.array(counts) - 1)).sum()), 1e-9)))


def _student(centre: float, error: float, t: float) -> Estimate:
    return Estimate(*map(float, (centre, error, centre - t * error, centre + t * error)))


def _percentiles(centre: float, drawn: Floats, confidence: float) -> Estimate:
    low = np.quantile(drawn, (1 - confidence) / 2, method="lower")
    high = np.quantile(drawn, (1 + confidence) / 2, method="higher")
    return Estimate(*map(float, (centre, drawn.std(ddof=1), low, high)))


def _whole(gold: Floats) -> Floats:
    """The prompts (columns) measured at every point (row)."""
    if np.isinf(gold).any():
        raise ValueError("an infinite reward has no mean")
    return gold[:, ~np.isnan(gold).any(axis=0)]


def _distances(d: ArrayLike) -> Floats:
    numbers = np.asarray(d, dtype=np.float64)
    if numbers.ndim != 1 or not np.isfinite(numbers).all() or (numbers < 0).any():
        raise ValueError("d must be a list of finite numbers, 0 or more: square roots of a KL")
    return numbers


def _points(
    d: ArrayLike, reward: ArrayLike, form: Form, curves: ArrayLike | None = None
) -> tuple[Floats, Floats, NDArray[np.int_]]:
    """Checked d, rewards and curves 0, 1, ... of the points with d > 0."""
    if form not in get_args(Form):
        raise ValueError(f"form is one of {get_args(Form)}, not {form!r}")
    x, y = _distances(d), np.asarray(reward, dtype=np.float64)
    labels = np.zeros(len(x)) if curves is None else np.asarray(curves)
    if not x.shape == y.shape[:1] == labels.shape:
        shapes = ", ".join(str(each.shape) for each in (x, y, labels))
        raise ValueError(f"one reward and curve a d: got shapes {shapes}")
    if not np.isfinite(y).all():
        raise ValueError("rewards must be finite")
    used = x > 0
    return x[used], y[used], np.unique(labels[used], return_inverse=True)[1]
