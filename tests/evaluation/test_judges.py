"""Judges by score, and what the order of showing does."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from betaflow.evaluation.judges import (
    NO_SCORE,
    VERDICT,
    missing_reasons,
    order_effects,
    score_judge,
)


def test_the_higher_score_wins_and_a_missing_one_is_no_verdict() -> None:
    pairs = pd.DataFrame(
        {"gold_a": [1.0, 0.0, 2.0, math.nan], "gold_b": [0.0, 0.0, 3.0, 1.0]}, index=[7, 5, 3, 1]
    )
    verdicts = score_judge("gold")(pairs)
    assert list(verdicts.columns) == VERDICT
    assert verdicts.index.tolist() == [7, 5, 3, 1]
    assert verdicts["preference"].tolist()[:3] == [1.0, 0.5, 0.0]
    assert math.isnan(verdicts["preference"].iloc[3])
    assert verdicts["missing"].tolist() == ["", "", "", NO_SCORE]
    assert missing_reasons(verdicts) == {NO_SCORE: 1}
    assert order_effects(verdicts).pairs == 0


def verdicts(ab: str, ba: str) -> pd.DataFrame:
    table = pd.DataFrame({"ab": list(ab), "ba": list(ba)}).replace("-", "")
    told = (table["ab"] != "") & (table["ba"] != "")
    table["preference"] = np.where(told, ((table == "a").sum(axis=1)) / 2, np.nan)
    table["missing"] = np.where(told, "", "empty")
    return table


@pytest.mark.parametrize(
    ("ab", "ba", "pairs", "consistency", "first"),
    [
        ("aabb", "aabb", 4, 1.0, 0.5),  # a judge that looks at the texts
        ("aaaa", "bbbb", 4, 0.0, 1.0),  # always the first
        ("bbbb", "aaaa", 4, 0.0, 0.0),  # always the second
        ("aab-", "aba-", 3, 1 / 3, 0.5),
        ("a-a", "aa-", 1, 1.0, 0.5),  # told in both orders once only
    ],
)
def test_consistency_and_position_bias(
    ab: str, ba: str, pairs: int, consistency: float, first: float
) -> None:
    effects = order_effects(verdicts(ab, ba), resamples=100)
    assert effects.pairs == pairs
    assert effects.consistency.estimate == pytest.approx(consistency)
    assert effects.first.estimate == pytest.approx(first)


def test_order_effects_have_intervals_over_prompts() -> None:
    random = np.random.default_rng(0)
    letters = np.array(["a", "b"])
    table = verdicts("".join(random.choice(letters, 400)), "".join(random.choice(letters, 400)))
    effects = order_effects(table, np.arange(400) // 2, resamples=500)
    for found in (effects.consistency, effects.first):
        assert found.low < 0.5 < found.high
        assert 0.05 < found.high - found.low < 0.15


def test_reasons_are_counted_most_frequent_first() -> None:
    table = pd.DataFrame(
        {
            "preference": [math.nan, 1.0, math.nan, math.nan, math.nan],
            "missing": ["timeout", "", "empty", "timeout", "cut"],
        }
    )
    assert list(missing_reasons(table).items()) == [("timeout", 2), ("cut", 1), ("empty", 1)]
