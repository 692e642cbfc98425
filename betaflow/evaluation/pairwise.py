"""All arms against all: the comparisons as long arrays, and the matrix of win rates."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from betaflow.evaluation.bootstrap import UNKNOWN, Estimate
from betaflow.evaluation.win_rate import preferences as preferred
from betaflow.evaluation.win_rate import win_rate

EVEN = Estimate(0.5, 0.0, 0.5, 0.5)


class Comparisons(NamedTuple):
    """Verdicts, a row each: the names of two arms, the preference for `left`, the prompt."""

    left: NDArray[np.str_]
    right: NDArray[np.str_]
    preferences: NDArray[np.float64]
    clusters: NDArray[np.generic]


def compare_all(scores: Mapping[str, ArrayLike], clusters: ArrayLike | None = None) -> Comparisons:
    """Every arm against every later one, sample by sample.

    Args:
        scores: by arm, (N,) scores of its samples, higher is better; the n-th of each arm is of the
            same prompt, temperature and seed. NaN: no verdict.
        clusters: (N,) labels, such as prompt ids; None: every sample stands alone.

    Raises:
        ValueError: fewer than two arms, or not as many samples of each.
    """
    arms = {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}
    shapes = {values.shape for values in arms.values()}
    if len(arms) < 2 or len(shapes) > 1:
        raise ValueError(f"not two or more arms of as many samples: {len(arms)}, shapes {shapes}")
    size = len(next(iter(arms.values())))
    labels = np.arange(size) if clusters is None else np.asarray(clusters)
    pairs = list(combinations(arms, 2))
    return Comparisons(
        np.repeat([left for left, _ in pairs], size),
        np.repeat([right for _, right in pairs], size),
        np.concatenate([preferred(arms[left], arms[right]) for left, right in pairs]),
        np.tile(labels, len(pairs)),
    )


def pairwise_matrix(
    left: ArrayLike,
    right: ArrayLike,
    preferences: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, Estimate]]:
    """Win rates of all arms against all: `matrix[a][b]` is how often a is preferred to b.

    Args:
        left, right: (N,) names of the two arms of each verdict, in either order.
        preferences: (N,) in [0, 1], of left over right; NaN is left out.
        clusters: (N,) labels, such as prompt ids; None: every verdict stands alone.
        resamples, confidence, seed: as in `win_rate`, with the same resamples for every pair that
            was judged on the same prompts.

    Returns:
        `win_rate` of each pair, arms in the order in which they first come up (row by row, left
        first). matrix[b][a] mirrors matrix[a][b] exactly. The diagonal is one half, without width;
        a pair that was not judged is NaN.

    Raises:
        ValueError: as `win_rate`, other shapes, or an arm compared with itself.
    """
    found = paired(left, right, preferences, clusters)
    matrix = {a: {b: EVEN if a == b else UNKNOWN for b in found.arms} for a in found.arms}
    for first, second in combinations(range(len(found.arms)), 2):
        here = (found.first == first) & (found.second == second)
        if here.any():
            a, b = found.arms[first], found.arms[second]
            rate = win_rate(
                found.preferences[here],
                found.cluster[here],
                resamples=resamples,
                confidence=confidence,
                seed=seed,
            )
            matrix[a][b], matrix[b][a] = rate, mirrored(rate)
    return matrix


class Paired(NamedTuple):
    """Known verdicts with the arm of the lower number first; `cluster` counts from 0."""

    arms: list[str]
    first: NDArray[np.intp]
    second: NDArray[np.intp]
    preferences: NDArray[np.float64]
    cluster: NDArray[np.intp]


def paired(
    left: ArrayLike, right: ArrayLike, preferences: ArrayLike, clusters: ArrayLike | None
) -> Paired:
    """Verdicts in one form; arguments and errors as `pairwise_matrix`."""
    names = np.stack([np.asarray(left, dtype=np.str_), np.asarray(right, dtype=np.str_)])
    wins = np.asarray(preferences, dtype=np.float64)
    labels = np.arange(len(wins)) if clusters is None else np.asarray(clusters)
    if wins.ndim != 1 or not names.shape[1:] == wins.shape == labels.shape:
        raise ValueError(
            f"one pair of arms and one cluster a preference: got shapes {names.shape[1:]}, "
            f"{wins.shape} and {labels.shape}"
        )
    if ((wins < 0) | (wins > 1)).any():
        raise ValueError("a preference lies between 0 and 1")
    if (names[0] == names[1]).any():
        raise ValueError(f"{names[0][names[0] == names[1]][0]} is compared with itself")
    sorted_arms, start, index = np.unique(names.T, return_index=True, return_inverse=True)
    number = np.argsort(np.argsort(start))[index.reshape(-1, 2)]  # by first appearance
    known = ~np.isnan(wins)
    turned = number[known, 0] > number[known, 1]
    lower_first = np.sort(number[known], axis=1)
    return Paired(
        [str(name) for name in sorted_arms[np.argsort(start)]],
        lower_first[:, 0],
        lower_first[:, 1],
        np.where(turned, 1 - wins[known], wins[known]),
        np.unique(labels[known], return_inverse=True)[1],
    )


def mirrored(rate: Estimate) -> Estimate:
    """The win rate of the other side."""
    return Estimate(1 - rate.estimate, rate.standard_error, 1 - rate.high, 1 - rate.low)
