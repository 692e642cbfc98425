"""Repetition, distinct n-grams, finished completions: by hand, and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from betaflow.evaluation import distinct_n, mean_interval, repeated_share, text_quality, win_rate


def test_repetition_by_hand() -> None:
    assert repeated_share("a b a b a b".split(), 2) == pytest.approx(3 / 5)  # ab ba ab ba ab
    assert repeated_share("the the the the".split(), 1) == 0.75
    assert repeated_share([1, 2, 3, 4, 5]) == 0
    assert repeated_share([7] * 103) == 0.99
    assert math.isnan(repeated_share([1, 2, 3]))
    assert math.isnan(repeated_share([]))


def test_distinct_n_by_hand() -> None:
    texts = ["good film".split(), "good film indeed".split()]
    assert distinct_n(texts, 1) == 3 / 5
    assert distinct_n(texts) == 2 / 3  # no n-gram goes from one completion into the next
    assert distinct_n([[1, 2], [1, 2]], 2) == 0.5
    assert math.isnan(distinct_n([], 2))
    with pytest.raises(ValueError, match="at least one token"):
        distinct_n(texts, 0)


def test_ids_and_words_count_the_same() -> None:
    words = "a good film a good film a bad film".split()
    ids = [words.index(word) for word in words]
    for n in (1, 2, 3):
        assert repeated_share(words, n) == repeated_share(ids, n)


def test_quality_of_an_arm_by_hand() -> None:
    completions = [[1, 2, 1, 2, 1, 2], [1, 2, 3, 4], [5, 6, 7, 8], [8]]
    found = text_quality(completions, [True, False, True, True], ["p", "p", "q", "q"])
    prompts = ["p", "p", "q"]  # the last completion has no four tokens
    assert found.repetition == pytest.approx(mean_interval([1 / 3, 0, 0], prompts))
    assert found.distinct == mean_interval([4 / 8, 1], ["p", "q"])
    assert found.finished == win_rate([1, 0, 1, 1], ["p", "p", "q", "q"])


def test_all_finished_is_not_certainty_and_nothing_is_nan() -> None:
    found = text_quality([[1, 2, 3]] * 50, [True] * 50)
    assert (found.finished.estimate, found.finished.high) == (1, 1)
    assert 0.9 < found.finished.low < 1
    assert math.isnan(found.repetition.estimate)  # three tokens have no 4-gram
    empty = text_quality([], [])
    assert all(math.isnan(number) for figure in empty for number in figure)
    with pytest.raises(ValueError, match="1 completions, 2 finished"):
        text_quality([[1]], [True, False])


def test_coverage_of_the_95_percent_intervals() -> None:
    """1,000 experiments of 120 prompts x 2 completions; each prompt's have much in common."""
    random = np.random.default_rng(0)
    prompts = np.repeat(np.arange(120), 2)

    def draw(count: int) -> tuple[np.ndarray, ...]:
        """(count, 240): share of n-grams repeated (many have none), whether finished, length."""
        chance = np.repeat(random.beta(1, 3, (count, 120)), 2, axis=1)
        share = random.binomial(12, chance) / 12
        return share, random.random((count, 240)) < 0.95 - 0.1 * chance, 20 + 60 * share

    truths = [figures.mean() for figures in draw(20_000)]
    covered = np.zeros(3)
    for share, finished, length in zip(*draw(1000), strict=True):
        found = [
            mean_interval(share, prompts, resamples=400),
            win_rate(finished.astype(float), prompts, resamples=400),
            mean_interval(length, prompts, resamples=400),
        ]
        covered += [one.low <= truth <= one.high for one, truth in zip(found, truths, strict=True)]
    assert (covered / 1000 >= 0.93).all()
    assert (covered / 1000 <= 0.97).all()
