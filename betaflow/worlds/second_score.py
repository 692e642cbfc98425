"""A second gold score of the embedded world, learned from reviews alone.

A policy that is trained on the gold reward may come to exploit the way in which it is computed: a
list of words with fixed weights. This score knows nothing of that list. It estimates the same
thing, the latent sentiment of a text, by logistic regression on words and pairs of words of fresh
reviews, of which it was told the sentiment they were written from. What both scores see rise is
not an artefact of either.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from betaflow.worlds.sentiment import SCALE, Review, gold_reward, write_review

REVIEWS, HELD_OUT = 20_000, 4_000
FEWEST_REVIEWS = 20  # in which a word, or a pair of words, must occur to be a feature
INVERSE_RIDGE = 0.03  # of 0.01, 0.03, 0.1, 0.3 and 1 the likeliest on held-out reviews

Scores = NDArray[np.float64]


class SecondScore(NamedTuple):
    """The score, and how good it is on held-out reviews.

    Attributes:
        score: whole texts -> (N,) rewards in (-2.5, 2.5), the gold reward's scale.
        features: words and pairs of words.
        held_out: reviews that the rest is about.
        accuracy: share of them whose latent sentiment the score's sign tells; 0 tells half.
        gold_accuracy: the same of the gold reward, which no score can expect to beat.
        correlation: of the score with the gold reward.
    """

    score: Callable[[Sequence[str]], Scores]
    features: int
    held_out: int
    accuracy: float
    gold_accuracy: float
    correlation: float


def second_score(seed: int) -> SecondScore:
    """Learn the score from `REVIEWS` fresh reviews; the same seed gives the same score.

    The scale is the gold reward's: 2.5 (P(s=+1 | text) - P(s=-1 | text)), here with the
    probability as estimated.
    """
    score, features = _learn(_reviews(f"{seed}/second", REVIEWS))
    fresh = _reviews(f"{seed}/second-held-out", HELD_OUT)
    texts = [review.text for review in fresh]
    sentiment = np.array([review.sentiment for review in fresh])
    found, gold = score(texts), np.array([gold_reward(text) for text in texts])
    return SecondScore(
        score,
        features,
        HELD_OUT,
        _accuracy(found, sentiment),
        _accuracy(gold, sentiment),
        float(np.corrcoef(found, gold)[0, 1]),
    )


def _reviews(seed: str, count: int) -> list[Review]:
    rng = random.Random(seed)
    return [write_review(rng) for _ in range(count)]


def _accuracy(scores: Scores, sentiment: NDArray[np.int_]) -> float:
    return float(0.5 + (np.sign(scores) * sentiment).mean() / 2)


def _learn(reviews: Sequence[Review]) -> tuple[Callable[[Sequence[str]], Scores], int]:
    """Ridge logistic regression on counts of words and of pairs of neighbours; its features."""
    # Not at the top: where a policy is only trained, scikit-learn need not be there.
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    counts = CountVectorizer(
        ngram_range=(1, 2), min_df=FEWEST_REVIEWS, token_pattern=r"[a-z]+", lowercase=True
    )
    model = LogisticRegression(C=INVERSE_RIDGE, max_iter=1000)
    model.fit(counts.fit_transform([r.text for r in reviews]), [r.sentiment for r in reviews])

    def score(texts: Sequence[str]) -> Scores:
        log_odds = model.decision_function(counts.transform(texts))  # the class +1's
        return SCALE * np.tanh(log_odds / 2)

    return score, len(counts.vocabulary_)
