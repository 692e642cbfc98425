"""Preference pairs out of a file, for the benchmarks."""

from __future__ import annotations

from pathlib import Path

from betaflow.data.files import read_jsonl_rows
from betaflow.data.schema import Dropped, parse_pair
from betaflow.data.transcripts import parse_transcripts


def read_pairs(path: Path) -> tuple[list[dict[str, str]], int]:
    """Pairs of text with `prompt`, `chosen` and `rejected`, and how many rows can't be one.

    A row without a `prompt` is taken for HH's two transcripts.
    """
    pairs, dropped = [], 0
    for where, row in read_jsonl_rows(path):
        found = (parse_pair if "prompt" in row else parse_transcripts)(row, where)
        if isinstance(found, Dropped) or found.chosen == found.rejected:
            dropped += 1
            continue
        texts = {name: getattr(found, name) for name in ("prompt", "chosen", "rejected")}
        if not all(isinstance(text, str) and text for text in texts.values()):
            dropped += 1
            continue
        pairs.append(texts)
    return pairs, dropped
