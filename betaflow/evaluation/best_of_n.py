"""Best-of-N: of N draws of pi_ref keep the one a score ranks first, computed without sampling.

The mean over every way to choose N of a prompt's draws is unbiased for N fresh draws, and exact:
among draws sorted from the best, the k-th of M wins if it is chosen and the k - 1 before it are
not, with chance C(M - k, N - 1) / C(M, N).
"""

from __future__ import annotations

from math import log

import numpy as np
from numpy.typing import ArrayLike

from betaflow.evaluation.optimum import Array, as_draws


def best_of_n_rewards(rewards: ArrayLike, n: int, proxies: ArrayLike | None = None) -> Array:
    """(prompts,) expected reward of Best-of-N.

    Args:
        rewards: (prompts, draws) rewards of draws of pi_ref.
        n: from 1 to the number of draws.
        proxies: (prompts, draws) scores to choose by, such as a reward model's; None: the
            rewards themselves. Ties are broken at random.

    Raises:
        ValueError: not two such matrices, a number that is not finite, or n out of range.
    """
    gold = as_draws(rewards)
    scores = gold if proxies is None else as_draws(proxies)
    if scores.shape != gold.shape:
        raise ValueError(f"one proxy a reward: got shapes {scores.shape} and {gold.shape}")
    count = gold.shape[1]
    if not 1 <= n <= count:
        raise ValueError(f"best of {n} needs from 1 to {count} draws a prompt")
    before = np.arange(count - 1)  # draws that rank higher, for all but the last draw
    steps = np.clip(count - before - n, 0, None) / (count - before - 1)
    chances = n / count * np.concatenate([[1.0], np.cumprod(steps)])
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(gold, order, axis=1)
    if proxies is not None:
        ranked = _level_ties(ranked, np.take_along_axis(scores, order, axis=1))
    return ranked @ chances


def best_of_n_kl(n: int) -> float:
    """KL(Best-of-N || pi_ref) = log N - (N - 1) / N, nats.

    Exact where no two completions score the same; where they can, an upper bound (Beirami et al.
    2024, "Theoretical guarantees on the best-of-n alignment policy").
    """
    return log(n) - (n - 1) / n


def _level_ties(values: Array, scores: Array) -> Array:
    """Each value replaced by the mean over the draws of its row with the same score."""
    new = np.concatenate([np.ones((len(scores), 1), bool), np.diff(scores, axis=1) != 0], axis=1)
    group = np.cumsum(new) - 1
    means = np.bincount(group, weights=values.ravel()) / np.bincount(group)
    return means[group].reshape(values.shape)
