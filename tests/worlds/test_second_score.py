"""The second gold score: learned from reviews, close to the gold reward, and not the same."""

from __future__ import annotations

import random

import numpy as np
import pytest

from betaflow.worlds import second_score as second_score_module
from betaflow.worlds.second_score import SecondScore, second_score
from betaflow.worlds.sentiment import SCALE, gold_reward, write_review


@pytest.fixture(scope="module")
def second() -> SecondScore:
    return second_score(0)


def test_it_estimates_what_the_gold_reward_knows(second: SecondScore) -> None:
    rng = random.Random(5)
    reviews = [write_review(rng) for _ in range(2000)]
    texts = [review.text for review in reviews]
    found, gold = second.score(texts), np.array([gold_reward(text) for text in texts])
    assert np.corrcoef(found, gold)[0, 1] > 0.9
    assert np.abs(found).max() < SCALE
    assert np.abs(found - gold).mean() > 0.1  # it is not the same score
    assert second.correlation == pytest.approx(np.corrcoef(found, gold)[0, 1], abs=0.02)
    # Gold is the exact posterior, so it tells the latent sentiment best, and chance one half.
    assert 0.7 < second.accuracy < second.gold_accuracy < 0.85
    sentiment = np.array([review.sentiment for review in reviews])
    assert (np.sign(found) == sentiment).mean() == pytest.approx(second.accuracy, abs=0.03)


def test_it_learned_words_and_negation(second: SecondScore) -> None:
    good, bad, turned = second.score(["The plot was SUPERB.", "the plot was awful", "not good"])
    assert good > 0.5 > -0.5 > bad
    assert turned < second.score(["good"])[0]


def test_it_learns_from_the_sentiment_that_was_written_not_from_the_gold_reward() -> None:
    reviews = second_score_module._reviews("turned", 2000)
    turned = [review._replace(sentiment=-review.sentiment) for review in reviews]
    texts = [review.text for review in reviews]
    straight, _ = second_score_module._learn(reviews)
    reverse, _ = second_score_module._learn(turned)
    np.testing.assert_allclose(reverse(texts), -straight(texts), atol=1e-3)
    assert np.abs(straight(texts)).mean() > 0.5


def test_the_same_seed_gives_the_same_score(second: SecondScore) -> None:
    texts = ["the plot was good", "a bore", "", "words it has never seen: zyx"]
    again, other = second_score(0), second_score(1)
    np.testing.assert_array_equal(again.score(texts), second.score(texts))
    assert again[1:] == second[1:]
    assert (other.score(texts) != second.score(texts)).any()
