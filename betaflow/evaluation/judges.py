"""Judges: a table of pairs in, a table of verdicts out.

A pair is a prompt with two completions, a and b. A judge compares them by a score of each
(`score_judge`: the gold reward, a reward model) or by asking a language model
(`betaflow.evaluation.llm_judge`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from betaflow.evaluation.bootstrap import Estimate
from betaflow.evaluation.win_rate import preferences, win_rate

PAIR = ["prompt", "completion_a", "completion_b"]
VERDICT = ["preference", "ab", "ba", "missing"]
NO_SCORE = "no score"

# From a table with the columns of `PAIR` (and what else the judge reads) to one with the columns of
# `VERDICT`, row by row under the same index: `preference` of a over b in [0, 1], NaN where it is
# missing; `ab` and `ba`, the winner ("a" or "b") with a shown first and with b shown first, ""
# where it was not asked or not told; `missing`, why there is no preference, "" where there is one.
Judge = Callable[[pd.DataFrame], pd.DataFrame]


class OrderEffects(NamedTuple):
    """What the order of showing does to a judge's verdicts."""

    pairs: int  # judged in both orders
    consistency: Estimate  # share of them with the same winner in both
    first: Estimate  # share of verdicts for the completion shown first: 1/2 without a bias


def score_judge(column: str) -> Judge:
    """The judge that prefers the higher score: of columns `<column>_a` and `<column>_b`.

    A tie is one half; without either score the verdict is missing.
    """

    def judge(pairs: pd.DataFrame) -> pd.DataFrame:
        found = preferences(pairs[f"{column}_a"], pairs[f"{column}_b"])
        missing = np.where(np.isnan(found), NO_SCORE, "")
        values = {"preference": found, "ab": "", "ba": "", "missing": missing}
        return pd.DataFrame(values, index=pairs.index)

    return judge


def order_effects(
    verdicts: pd.DataFrame,
    clusters: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> OrderEffects:
    """Position consistency and position bias, of the pairs that were judged in both orders.

    Args:
        verdicts: of a judge (columns of `VERDICT`).
        clusters, resamples, confidence, seed: as in `win_rate`.
    """
    both = ((verdicts["ab"] != "") & (verdicts["ba"] != "")).to_numpy()
    ab, ba = (verdicts.loc[both, name] for name in ("ab", "ba"))
    labels = (np.arange(len(verdicts)) if clusters is None else np.asarray(clusters))[both]
    same, first = (ab == ba).astype(float), ((ab == "a") * 0.5 + (ba == "b") * 0.5)
    how = {"resamples": resamples, "confidence": confidence, "seed": seed}
    return OrderEffects(
        int(both.sum()),
        win_rate(same, labels, **how),  # type: ignore[arg-type]
        win_rate(first, labels, **how),  # type: ignore[arg-type]
    )


def missing_reasons(verdicts: pd.DataFrame) -> Mapping[str, int]:
    """How many verdicts are missing, by reason, most frequent first."""
    reasons = verdicts.loc[verdicts["preference"].isna(), "missing"]
    counts = reasons.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    return {str(reason): int(count) for reason, count in counts.items()}
