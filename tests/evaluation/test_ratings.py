"""All arms against all: the matrix, the ratings, their intervals at the edges, and coverage."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from simulated import sigmoid, verdicts

from betaflow.evaluation import (
    Comparisons,
    bradley_terry,
    compare_all,
    elo,
    pairwise_matrix,
    preferences,
    win_rate,
)

RANDOM = np.random.default_rng(0)
PROMPTS = np.repeat(np.arange(60), 2)
SCORES = {name: RANDOM.normal(level, 1, 120) for name, level in [("sft", 0), ("b", 0.5), ("a", 1)]}
ALL = compare_all(SCORES, PROMPTS)


def played(random: np.random.Generator, prompts: int, ratings: list[float]) -> Comparisons:
    """Every two arms on each prompt, verdicts alike within a prompt."""
    first, second = np.triu_indices(len(ratings), 1)
    chances = sigmoid(np.array(ratings)[first] - np.array(ratings)[second])
    won = verdicts(random, np.tile(chances, (prompts, 1)), 0.3)
    names = np.array([f"arm{number}" for number in range(len(ratings))])
    prompt = np.repeat(np.arange(prompts), len(first))
    return Comparisons(
        np.tile(names[first], prompts), np.tile(names[second], prompts), won.ravel(), prompt
    )


def test_every_pair_of_arms_is_compared_sample_by_sample() -> None:
    assert list(zip(ALL.left[::120], ALL.right[::120], strict=True)) == [
        ("sft", "b"),
        ("sft", "a"),
        ("b", "a"),
    ]
    np.testing.assert_array_equal(ALL.preferences[:120], preferences(SCORES["sft"], SCORES["b"]))
    np.testing.assert_array_equal(ALL.clusters[120:240], PROMPTS)
    with pytest.raises(ValueError, match="two or more arms"):
        compare_all({"sft": [1.0]})
    with pytest.raises(ValueError, match="as many samples"):
        compare_all({"sft": [1.0], "a": [1.0, 2.0]})


def test_matrix_holds_each_pair_s_win_rate_and_its_mirror_image() -> None:
    matrix = pairwise_matrix(*ALL)
    assert list(matrix) == ["sft", "b", "a"]
    assert matrix["b"]["a"] == win_rate(preferences(SCORES["b"], SCORES["a"]), PROMPTS)
    for one, other in combinations(matrix, 2):
        here, there = matrix[one][other], matrix[other][one]
        assert (there.estimate, there.standard_error) == (1 - here.estimate, here.standard_error)
        assert (there.low, there.high) == (1 - here.high, 1 - here.low)
        assert matrix[one][one] == (0.5, 0, 0.5, 0.5)


def test_matrix_takes_pairs_in_either_order_and_leaves_open_what_was_not_judged() -> None:
    matrix = pairwise_matrix(["a", "b", "c"], ["b", "a", "a"], [1.0, 0.0, math.nan], [0, 1, 2])
    assert matrix["a"]["b"] == win_rate([1.0, 1.0])
    assert math.isnan(matrix["a"]["c"].estimate)
    assert math.isnan(matrix["b"]["c"].estimate)


def test_two_arms_have_the_log_odds_of_their_win_rate() -> None:
    # 30 wins and 10 losses, and half of each for the prior.
    found = bradley_terry(["a"] * 40, ["b"] * 40, [1.0] * 30 + [0.0] * 10, anchor="b")
    assert found["a"].estimate == pytest.approx(math.log(30.5 / 10.5))
    assert found["b"] == (0, 0, 0, 0)


def test_two_arms_have_jeffreys_interval() -> None:
    """Quantiles of Beta(wins + 1/2, losses + 1/2), up to a widening that vanishes with prompts."""
    for wins, losses in ((500, 300), (800, 0)):
        total = wins + losses
        found = bradley_terry(
            ["a"] * total, ["b"] * total, [1.0] * wins + [0.0] * losses, anchor="b", resamples=4000
        )["a"]
        draws = np.random.default_rng(1).beta(wins + 0.5, losses + 0.5, 400_000)
        low, high = np.quantile(draws, [0.025, 0.975])
        assert sigmoid(found.low) == pytest.approx(low, abs=3e-3 if losses else 5e-4)
        assert sigmoid(found.high) == pytest.approx(high, abs=3e-3 if losses else 1e-5)


def test_ratings_maximise_the_likelihood() -> None:
    """Against the minorise-maximise iteration of Hunter (2004), slow and independent."""
    random = np.random.default_rng(2)
    arms, pairs = "abcd", list(combinations(range(4), 2))
    left = [arms[i] for i, _ in pairs for _ in range(25)]
    right = [arms[j] for _, j in pairs for _ in range(25)]
    won = random.random(150)
    wins = np.zeros((4, 4))
    for (i, j), part in zip(pairs, won.reshape(6, 25), strict=True):
        wins[i, j], wins[j, i] = part.sum() + 0.5 / 3, 25 - part.sum() + 0.5 / 3  # three opponents
    strength = np.ones(4)
    for _ in range(20_000):
        met = (wins + wins.T) / (strength[:, None] + strength)
        strength = wins.sum(axis=1) / met.sum(axis=1)
        strength /= strength.prod() ** 0.25
    found = bradley_terry(left, right, won, resamples=10)
    ratings = [found[arm].estimate for arm in arms]
    assert ratings == pytest.approx(np.log(strength).tolist(), abs=1e-9)
    assert sum(ratings) == pytest.approx(0)


def test_anchor_and_order_only_shift_and_sort() -> None:
    centred, anchored = bradley_terry(*ALL), bradley_terry(*ALL, anchor="sft")
    for arm in ("a", "b"):
        gap = centred[arm].estimate - centred["sft"].estimate
        assert anchored[arm].estimate == pytest.approx(gap)
    turned = bradley_terry(ALL.right, ALL.left, 1 - ALL.preferences, ALL.clusters, anchor="sft")
    order = np.random.default_rng(3).permutation(len(ALL.left))
    shuffled = bradley_terry(*(column[order] for column in ALL), anchor="sft")
    for arm in anchored:
        assert turned[arm].estimate == pytest.approx(anchored[arm].estimate)
        assert shuffled[arm].estimate == pytest.approx(anchored[arm].estimate)
    assert bradley_terry(*ALL) == centred


def test_elo_gives_400_points_for_odds_of_ten() -> None:
    rating = bradley_terry(["a"] * 11, ["b"] * 11, [1.0] * 10 + [0.5], anchor="b")["a"]
    assert elo(rating._replace(estimate=math.log(10))).estimate == pytest.approx(400)
    assert elo(rating).low == pytest.approx(rating.low * 400 / math.log(10))


def test_an_arm_that_never_lost_has_a_finite_rating_and_interval() -> None:
    scores = SCORES | {"best": SCORES["a"] + 100}
    found = bradley_terry(*compare_all(scores, PROMPTS), anchor="sft")["best"]
    assert np.isfinite(found).all()
    assert 3 < found.low < found.estimate < found.high < 30
    one = bradley_terry(["a", "b"], ["b", "c"], [1.0, 1.0])  # two verdicts, all for the left
    assert one["a"].estimate == pytest.approx(math.log(3))
    assert one["a"].low < 0 < one["a"].high


def test_equal_arms_and_ties_are_even() -> None:
    found = bradley_terry(*compare_all({"a": SCORES["a"], "b": SCORES["a"]}, PROMPTS))
    assert found["a"].estimate == 0.0
    assert found["a"].low < 0 < found["a"].high < 0.1


def test_an_interval_holds_its_estimate_and_what_is_not_found_is_not_told() -> None:
    """Arms in a row, each of which beats the next one every time."""
    arms = [f"arm {n}" for n in range(10)]
    found = bradley_terry(np.repeat(arms[:-1], 20), np.repeat(arms[1:], 20), np.ones(180))
    assert all(one.low <= one.estimate <= one.high for one in found.values())
    far = [f"arm {n}" for n in range(60)]
    with pytest.raises(ValueError, match="too far apart"):
        bradley_terry(far[:-1] * 20, far[1:] * 20, np.ones(59 * 20), resamples=10)


def test_one_prompt_has_ratings_and_no_intervals() -> None:
    found = bradley_terry(["a", "a"], ["b", "b"], [1.0, 0.0], ["p", "p"])
    assert found["a"].estimate == pytest.approx(0)
    assert all(map(math.isnan, found["a"][1:]))


def test_what_leaves_ratings_open_is_refused() -> None:
    with pytest.raises(ValueError, match="no chain of comparisons joins a and c"):
        bradley_terry(["a", "c"], ["b", "d"], [1.0, 1.0])
    with pytest.raises(ValueError, match="no verdict is about z"):
        bradley_terry(["a"], ["b"], [1.0], anchor="z")
    with pytest.raises(ValueError, match="no verdict"):
        bradley_terry(["a"], ["b"], [math.nan])
    with pytest.raises(ValueError, match="a is compared with itself"):
        bradley_terry(["a"], ["a"], [1.0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        bradley_terry(["a"], ["b"], [2.0])
    with pytest.raises(ValueError, match="one pair of arms"):
        pairwise_matrix(["a"], ["b"], [1.0, 0.0])


def test_coverage_of_the_95_percent_intervals() -> None:
    """1,000 experiments of four arms, the last far ahead; `benchmarks/coverage.py` has more."""
    random, true = np.random.default_rng(6), [0.0, 0.5, 1.0, 4.0]
    covered, rates = np.zeros(3), 0
    for experiment in range(1000):
        comparisons = played(random, 60, true)
        found = bradley_terry(*comparisons, anchor="arm0", resamples=400, seed=experiment)
        ends = [(found[f"arm{arm}"].low, found[f"arm{arm}"].high) for arm in (1, 2, 3)]
        covered += [low <= true[arm] <= high for arm, (low, high) in enumerate(ends, 1)]
        rate = pairwise_matrix(*comparisons, resamples=400, seed=experiment)["arm2"]["arm0"]
        rates += rate.low <= sigmoid(1.0) <= rate.high
    assert (covered / 1000 >= 0.93).all()
    assert (covered / 1000 <= 0.97).all()
    assert 0.93 <= rates / 1000 <= 0.97
