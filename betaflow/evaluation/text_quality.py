"""Text beside reward: repetition, diversity, finished completions.

A policy that is pushed to high reward may repeat itself, say the same to every prompt, ramble on
or fall silent; none of that shows in a win rate. A completion is a sequence of tokens: ids, or the
words of a text (`text.split()`). Counts of words and of ids are not comparable.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from betaflow.evaluation.bootstrap import Estimate, mean_interval
from betaflow.evaluation.win_rate import win_rate

Tokens = Sequence[Hashable]


class TextQuality(NamedTuple):
    """Shares: means over completions, but `distinct`: over prompts."""

    repetition: Estimate
    distinct: Estimate
    finished: Estimate


def text_quality(
    completions: Sequence[Tokens],
    finished: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> TextQuality:
    """What an arm's completions look like, with intervals over prompts.

    Args:
        completions: (N,) sequences of tokens.
        finished: (N,) whether each ended with EOS rather than at the limit.
        clusters: (N,) prompt ids; None: every completion is of another prompt.
        resamples, confidence, seed: as in `bootstrap.mean_interval`.

    Returns:
        `repetition`: `repeated_share` of each completion; of those too short for it none is known.
        `distinct`: `distinct_n` over the completions of each prompt, so that it tells how much the
        draws of a prompt differ; it falls with their number and length: compare arms by the same
        number of draws. `finished`: the EOS rate, with the interval of `win_rate`.

    Raises:
        ValueError: other numbers of completions, finished and clusters.
    """
    ended = np.asarray(finished, dtype=np.float64)
    labels = np.arange(len(completions)) if clusters is None else np.asarray(clusters)
    if not len(completions) == len(ended) == len(labels):
        raise ValueError(
            f"{len(completions)} completions, {len(ended)} finished, {len(labels)} clusters"
        )
    names, index = np.unique(labels, return_inverse=True)
    groups: list[list[Tokens]] = [[] for _ in names]
    for group, completion in zip(index, completions, strict=True):
        groups[group].append(completion)
    mean = partial(mean_interval, resamples=resamples, confidence=confidence, seed=seed)
    return TextQuality(
        mean([repeated_share(completion) for completion in completions], labels),
        mean([distinct_n(group) for group in groups], names),
        win_rate(ended, labels, resamples=resamples, confidence=confidence, seed=seed),
    )


def repeated_share(tokens: Tokens, n: int = 4) -> float:
    """The share of a completion's n-grams that it has had before: seq-rep-n of Welleck et al. 2020.

    1 - distinct / all: 0 where none comes twice. NaN for fewer than n tokens.
    """
    return 1 - distinct_n([tokens], n)


def distinct_n(completions: Sequence[Tokens], n: int = 2) -> float:
    """Distinct n-grams of the completions over all their n-grams: distinct-n of Li et al. 2016.

    An n-gram lies within a completion. NaN if none has n tokens.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError("an n-gram has at least one token")
    grams = [
        tuple(tokens[start : start + n])
        for tokens in completions
        for start in range(len(tokens) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else float("nan")
