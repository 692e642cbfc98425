"""Win rates: preferences, pairing, intervals at the edges, and coverage."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from simulated import LABELS, labelled

from betaflow.errors import UserError
from betaflow.evaluation import paired, preferences, win_rate


def test_preferences() -> None:
    found = preferences([2.0, 1.0, 0.0, math.nan, 1.0], [1.0, 1.0, 1.0, 1.0, math.nan])
    np.testing.assert_array_equal(found, [1.0, 0.5, 0.0, math.nan, math.nan])


def test_win_rate_by_hand() -> None:
    found = win_rate([1.0, 1.0, 0.5, 0.0], ["a", "a", "b", "c"])
    assert found.estimate == 0.625
    assert 0 <= found.low < 0.625 < found.high <= 1


def test_win_rate_and_its_mirror_image_are_symmetric() -> None:
    verdicts = np.random.default_rng(0).integers(0, 3, 200) / 2
    clusters = np.repeat(np.arange(100), 2)
    one, other = win_rate(verdicts, clusters), win_rate(1 - verdicts, clusters)
    assert other.estimate == pytest.approx(1 - one.estimate)
    assert other.standard_error == pytest.approx(one.standard_error)
    assert (other.low, other.high) == pytest.approx((1 - one.high, 1 - one.low))


def test_an_arm_against_itself_is_exactly_one_half() -> None:
    scores = np.random.default_rng(0).normal(size=50)
    assert win_rate(preferences(scores, scores)) == (0.5, 0.0, 0.5, 0.5)


def test_all_wins_are_not_certainty() -> None:
    found = win_rate([1.0] * 100)
    assert (found.estimate, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(100 / (100 + 1.959964**2))  # Wilson (1927) at p = 1
    assert win_rate([0.0] * 100).high == pytest.approx(1 - found.low)


@pytest.mark.parametrize("completions", [1, 2])
@pytest.mark.parametrize("lost", [0, 1, 4])
def test_a_worse_label_never_raises_the_lower_end(completions: int, lost: int) -> None:
    """From all wins down: one label by one, and all of them together."""
    prompts = np.repeat(np.arange(160), completions)
    wins = np.r_[np.zeros(lost), np.ones(len(prompts) - lost)]
    one, all_ = [], []
    for label in (1.0, 0.999, 0.99, 0.9, 0.5, 0.2, 0.0):
        worse = np.r_[wins[:-1], label]
        one.append(win_rate(worse, prompts).low)
        mirrored = win_rate(1 - worse, prompts).high
        assert mirrored == pytest.approx(1 - one[-1])
        all_.append(win_rate(np.minimum(wins, label), prompts).low)
    assert one == sorted(one, reverse=True)
    assert all_ == sorted(all_, reverse=True)


def test_labels_that_are_alike_are_no_surer_than_wins() -> None:
    found = win_rate([0.99] * 50)
    assert found.low == pytest.approx(0.99 * win_rate([1.0] * 50).low)
    assert found.high > 0.99


def test_missing_verdicts_are_neither_ties_nor_losses() -> None:
    assert win_rate([1.0, math.nan, 0.0]) == win_rate([1.0, 0.0], [0, 2])
    assert all(map(math.isnan, win_rate([math.nan, math.nan])))


def test_what_is_no_preference_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        win_rate([0.0, 1.5])
    with pytest.raises(ValueError, match="one score"):
        preferences([1.0], [1.0, 2.0])


def table(rows: list[tuple[str, float, int, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["prompt_id", "temperature", "seed", "gold_reward"])


def test_pairs_are_made_by_key_whatever_the_order() -> None:
    a = table([("p", 1.0, 0, 1.0), ("p", 1.0, 1, 2.0), ("q", 0.0, 0, 3.0)])
    b = table([("q", 0.0, 0, 30.0), ("p", 1.0, 1, 20.0), ("p", 1.0, 0, 10.0)])
    pairs = paired(a, b, ["gold_reward"])
    assert pairs["prompt_id"].tolist() == ["p", "p", "q"]
    assert pairs["gold_reward_b"].tolist() == (10 * pairs["gold_reward_a"]).tolist()


def test_arms_sampled_over_different_keys_cannot_be_paired() -> None:
    a = table([("p", 1.0, 0, 1.0)])
    with pytest.raises(UserError, match="same prompts, temperatures and seeds"):
        paired(a, table([("p", 1.0, 0, 1.0), ("p", 1.0, 1, 1.0)]), ["gold_reward"])
    with pytest.raises(UserError, match="same prompt, temperature and seed"):
        paired(a, pd.concat([a, a]), ["gold_reward"])


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.97, 0.99])
def test_coverage_of_the_95_percent_interval(rate: float) -> None:
    """1,200 experiments of 160 prompts x 2 correlated verdicts with a known win rate."""
    random = np.random.default_rng(11)
    clusters = np.repeat(np.arange(160), 2)
    covered = 0
    for experiment in range(1200):
        chance = random.beta(4 * rate, 4 * (1 - rate), size=(160, 1))
        verdicts = (random.random((160, 2)) < chance).astype(float)
        found = win_rate(verdicts.ravel(), clusters, resamples=500, seed=experiment)
        covered += found.low <= rate <= found.high
    assert 0.93 <= covered / 1200 <= 0.97


@pytest.mark.parametrize("prompts, completions", [(24, 1), (50, 1), (50, 2), (160, 1)])
@pytest.mark.parametrize("name", LABELS)
def test_soft_labels_and_ties_near_1_are_covered(name: str, prompts: int, completions: int) -> None:
    """1,000 experiments of labels with a known mean; wide intervals are in order here."""
    random = np.random.default_rng(3)
    labels, shares = LABELS[name]
    truth, clusters = float(np.dot(labels, shares)), np.repeat(np.arange(prompts), completions)
    covered = 0
    for experiment in range(1000):
        won = labelled(random, prompts, completions, labels, shares)
        found = win_rate(won.ravel(), clusters, resamples=200, seed=experiment)
        covered += found.low <= truth <= found.high
    assert covered / 1000 >= 0.93
