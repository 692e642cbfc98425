"""Text beside reward: repetition, distinct n-grams, EOS rate; the columns and the section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from betaflow.config import CompareSettings
from betaflow.evaluation.text_quality import text_quality
from betaflow.report import text
from betaflow.report.estimates import Row, at, inside, spread

COLUMNS = [  # title, column, decimals, scale
    ("repetition, %", "repetition", 2, 100.0),
    ("distinct-2, %", "distinct", 1, 100.0),
    ("ended, %", "finished", 1, 100.0),
    ("tokens", "completion_tokens", 1, 1.0),
]


def with_text_quality(
    rows: Sequence[Row], samples: Mapping[str, pd.DataFrame], settings: CompareSettings
) -> list[Row]:
    """Rows of `estimates` with `repetition`, `distinct` and `finished`, of words.

    NaN where completions are too short: of fewer than four words, and of fewer than two.
    """
    return [
        row | _quality(at(inside(samples, row["arm"]), [row["temperature"]]), settings)
        for row in rows
    ]


def _quality(samples: pd.DataFrame, settings: CompareSettings) -> Row:
    found = text_quality(
        [str(completion).split() for completion in samples["completion"]],
        samples["finish_reason"] == "stop",
        samples["prompt_id"],
        **settings.resampling,
    )
    return (
        spread("repetition", found.repetition)
        | spread("distinct", found.distinct)
        | spread("finished", found.finished)
    )


def quality_section(document: Mapping[str, Any]) -> dict[str, Any]:
    """A row an arm at the report's temperature; `document` is `estimates.json`."""
    rows = [row for row in document["rows"] if row["temperature"] == document["temperature"]]
    return {
        "titles": [title for title, *_ in COLUMNS],
        "rows": [
            {
                "arm": row["arm"],
                "prompts": text.number(row["prompts"], 0),
                "samples": text.number(row["samples"], 0),
                "cells": [
                    text.estimate(row, name, digits, scale) for _, name, digits, scale in COLUMNS
                ],
            }
            for row in rows
        ],
    }
