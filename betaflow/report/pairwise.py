"""All arms against all at one temperature: win rates, ratings, and the report's two sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd

from betaflow.config import Arm, CompareSettings
from betaflow.evaluation.pairwise import Comparisons, compare_all, pairwise_matrix
from betaflow.evaluation.ratings import bradley_terry, elo
from betaflow.evaluation.win_rate import KEYS
from betaflow.report import text
from betaflow.report.estimates import SFT, Row, at, baselines, inside, judge_column, spread

COLUMNS = ["arm", "other", "estimate", "low", "high", "prompts"]


def pairwise(
    arms: Sequence[Arm],
    samples: Mapping[str, pd.DataFrame],
    settings: CompareSettings,
    temperature: float,
) -> dict[str, Any]:
    """Win rates and ratings of the arms that were sampled at a temperature, in domain.

    Returns:
        `temperature`; `rows`, of each arm and each other, how often the arm is preferred
        (`COLUMNS`), NaN where the judge was not asked; `ratings`, of each arm its Bradley-Terry
        `rating` over SFT's in points of the Elo scale, and of how many `prompts` and `verdicts`.
    """
    found = comparisons(arms, samples, settings, temperature)
    matrix = pairwise_matrix(*found, **settings.resampling)
    ratings = bradley_terry(*found, anchor=SFT, **settings.resampling)
    prompts = _prompts(found)
    return {
        "temperature": temperature,
        "rows": [
            {
                "arm": arm,
                "other": other,
                "estimate": matrix[arm][other].estimate,
                "low": matrix[arm][other].low,
                "high": matrix[arm][other].high,
                "prompts": prompts.get(frozenset((arm, other)), 0),
            }
            for arm, other in permutations([arm.name for arm in arms if arm.name in matrix], 2)
        ],
        "ratings": [
            {
                "arm": arm.name,
                **spread("rating", elo(ratings[arm.name])),
                **_counts(found, arm.name),
            }
            for arm in arms
            if arm.name in ratings
        ],
    }


def comparisons(
    arms: Sequence[Arm],
    samples: Mapping[str, pd.DataFrame],
    settings: CompareSettings,
    temperature: float,
) -> Comparisons:
    """Every verdict there is at a temperature: a score's on all pairs, a model's on those asked."""
    here = {arm.name: at(inside(samples, arm.name), [temperature]) for arm in arms}
    here = {name: table for name, table in here.items() if len(table)}
    if settings.judge == "llm":
        return _asked(arms, here)
    keys, column = here[SFT][KEYS], judge_column(settings)
    scores = {
        name: keys.merge(table[[*KEYS, column]], on=KEYS, how="left")[column]
        for name, table in here.items()
    }
    return compare_all(scores, keys["prompt_id"])


def _asked(arms: Sequence[Arm], samples: Mapping[str, pd.DataFrame]) -> Comparisons:
    """A language model's verdicts: on each arm against each baseline, a pair once."""
    parts = [
        (name, other, table[f"preference_vs_{baseline}"], table["prompt_id"])
        for baseline, other in baselines(arms).items()
        for name, table in samples.items()
        if other in samples and name not in (other, SFT)
    ]
    return Comparisons(
        np.concatenate([np.repeat(name, len(wins)) for name, _, wins, _ in parts]),
        np.concatenate([np.repeat(str(other), len(wins)) for _, other, wins, _ in parts]),
        np.concatenate([wins.to_numpy(dtype=np.float64) for _, _, wins, _ in parts]),
        np.concatenate([prompts.to_numpy() for *_, prompts in parts]),
    )


def _prompts(found: Comparisons) -> dict[frozenset[str], int]:
    """By pair of arms, on how many prompts there is a verdict."""
    table = pd.DataFrame(found._asdict()).dropna(subset="preferences")
    counts = table.groupby(["left", "right"], sort=False)["clusters"].nunique().reset_index()
    return {
        frozenset((left, right)): int(count)
        for left, right, count in counts.itertuples(index=False, name=None)
    }


def _counts(found: Comparisons, arm: str) -> Row:
    own = ((found.left == arm) | (found.right == arm)) & ~np.isnan(found.preferences)
    return {"prompts": len(np.unique(found.clusters[own])), "verdicts": int(own.sum())}


def with_ratings(rows: Sequence[Row], found: Mapping[str, Any]) -> list[Row]:
    """Rows with `rating` and its interval at the temperature of `pairwise`, NaN at others."""
    known = {(row["arm"], found["temperature"]): row for row in found["ratings"]}
    names = ["rating", "rating_low", "rating_high"]
    nothing = dict.fromkeys(names, float("nan"))
    return [
        row | {name: known.get((row["arm"], row["temperature"]), nothing)[name] for name in names}
        for row in rows
    ]


def by_rating(found: Mapping[str, Any]) -> list[str]:
    """The arms from the highest rating to the lowest."""
    return [row["arm"] for row in sorted(found["ratings"], key=lambda row: -row["rating"])]


def pairwise_section(document: Mapping[str, Any]) -> dict[str, Any]:
    """The matrix as texts, arms by falling rating; `document` is `estimates.json`."""
    found = document["pairwise"]
    cells = {(row["arm"], row["other"]): row for row in found["rows"]}
    arms = by_rating(found)
    counts = sorted({row["prompts"] for row in found["rows"] if row["prompts"]})
    return {
        "temperature": f"{found['temperature']:g}",
        "prompts": " to ".join(
            text.number(count, 0) for count in dict.fromkeys(counts[:1] + counts[-1:])
        ),
        "arms": arms,
        "gaps": any(row["estimate"] is None for row in found["rows"]),
        "rows": [
            {"arm": arm, "cells": [_cell(cells.get((arm, other))) for other in arms]}
            for arm in arms
        ],
    }


def _cell(row: Row | None) -> dict[str, str]:
    """A win rate in percent; nothing of an arm against itself."""
    if row is None:
        return {"value": "", "interval": ""}
    named = {f"rate{end}": row[end.strip("_") or "estimate"] for end in ("", "_low", "_high")}
    return text.estimate(named, "rate", 1, 100.0)


def ratings_section(document: Mapping[str, Any]) -> dict[str, Any]:
    """The ratings as texts, from the highest down; `document` is `estimates.json`."""
    found = document["pairwise"]
    ordered = sorted(found["ratings"], key=lambda row: -row["rating"])
    return {
        "temperature": f"{found['temperature']:g}",
        "rows": [
            {
                "arm": row["arm"],
                **text.estimate(row, "rating", 0),
                "prompts": text.number(row["prompts"], 0),
                "verdicts": text.number(row["verdicts"], 0),
            }
            for row in ordered
        ],
    }
