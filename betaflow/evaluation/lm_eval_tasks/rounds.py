"""The order of `betaflow_preference`'s documents, of which lm-eval takes the first `limit`."""

from __future__ import annotations

from collections import Counter
from typing import Any


def in_rounds(documents: Any) -> Any:
    """A pair of each prompt, then another of each, and on.

    All pairs of a few prompts would tell little more than a pair of each.

    Args:
        documents: of the datasets library, with a `prompt` each.
    """
    seen: Counter[str] = Counter()
    rounds = []
    for prompt in documents["prompt"]:
        rounds.append(seen[prompt])
        seen[prompt] += 1
    return documents.select(sorted(range(len(rounds)), key=rounds.__getitem__))
