"""Win rates with the effect of length taken out: the columns, and the report's section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from betaflow.config import Arm, CompareSettings
from betaflow.evaluation.length_control import length_controlled_win_rate
from betaflow.evaluation.win_rate import paired
from betaflow.report import text
from betaflow.report.estimates import SFT, Row, at, inside, judged, spread

NAME = "lc_win_rate_vs_sft"


def with_length_control(
    rows: Sequence[Row],
    arms: Sequence[Arm],
    samples: Mapping[str, pd.DataFrame],
    settings: CompareSettings,
) -> list[Row]:
    """Rows of `estimates` with `lc_win_rate_vs_sft`, over the verdicts of `win_rate_vs_sft`.

    Lengths are tokens. An arm as long as SFT on every sample has its plain win rate.
    """
    verdicts = {
        arm.name: _with_lengths(inside(samples, arm.name), samples, settings) for arm in arms
    }
    return [row | _controlled(verdicts[row["arm"]], row["temperature"], settings) for row in rows]


def _with_lengths(
    own: pd.DataFrame, samples: Mapping[str, pd.DataFrame], settings: CompareSettings
) -> pd.DataFrame:
    """An arm's verdicts against SFT, with the lengths of both completions."""
    sft = at(inside(samples, SFT), own["temperature"].unique())
    lengths = paired(own, sft, ["completion_tokens"])
    found = judged(own, sft, settings, SFT)  # in the same order: the arm's
    return lengths.assign(preference=found["preference"].to_numpy())


def _controlled(verdicts: pd.DataFrame, temperature: float, settings: CompareSettings) -> Row:
    here = verdicts[verdicts["temperature"] == temperature]
    found = length_controlled_win_rate(
        here["preference"],
        here["completion_tokens_a"],
        here["completion_tokens_b"],
        here["prompt_id"],
        **settings.resampling,
    )
    return spread(NAME, found)


def length_section(document: Mapping[str, Any]) -> dict[str, Any]:
    """Each trained arm's length, and its win rate as it is and with length controlled.

    `document` is `estimates.json`; `turned` names the arms that are shown to beat SFT on one of
    the two counts alone.
    """
    rows = [
        row
        for row in document["rows"]
        if row["temperature"] == document["temperature"] and row["arm"] != SFT
    ]
    sft = next(
        row
        for row in document["rows"]
        if row["arm"] == SFT and row["temperature"] == document["temperature"]
    )
    return {
        "sft": text.estimate(sft, "completion_tokens", 1),
        "rows": [
            {
                "arm": row["arm"],
                "prompts": text.number(row["win_rate_vs_sft_prompts"], 0),
                "verdicts": text.number(row["win_rate_vs_sft_verdicts"], 0),
                "cells": [
                    text.estimate(row, "completion_tokens", 1),
                    text.estimate(row, "win_rate_vs_sft", 1, 100.0),
                    text.estimate(row, NAME, 1, 100.0),
                ],
            }
            for row in rows
        ],
        "turned": [
            row["arm"] for row in rows if _wins(row, "win_rate_vs_sft") is not _wins(row, NAME)
        ],
    }


def length_sentences(document: Mapping[str, Any]) -> list[str]:
    """What a reader must know where the best arm may win by length; of `estimates.json`."""
    best = next(
        row
        for row in document["rows"]
        if row["arm"] == document["best"] and row["temperature"] == document["temperature"]
    )
    if not _wins(best, "win_rate_vs_sft") or _wins(best, NAME):
        return []
    found = text.estimate(best, NAME, 1, 100.0)
    return [
        f"With length controlled it wins {found['value']} % {found['interval']}, which is not "
        "shown to be above one half: it may win by length."
    ]


def _wins(row: Row, name: str) -> bool:
    low = row[f"{name}_low"]
    return low is not None and low > 0.5
