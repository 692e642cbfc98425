"""Which prompts keep their labels when only a share of them may: nested shares, by a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

# Changing it gives the labels to other prompts.
SALT = "betaflow-labelled-1"


def labelled_prompts(prompts: Iterable[str], share: float) -> set[str]:
    """The first `share` of the distinct prompts in the order of their hashes, at least one.

    A larger share adds prompts and takes none away; neither a seed nor the rows' order matters.

    Args:
        prompts: their texts; one may come again.
        share: above 0, at most 1.
    """

    def place(prompt: str) -> bytes:
        return hashlib.sha256(f"{SALT}\0{prompt}".encode()).digest()

    ordered = sorted(set(prompts), key=place)
    return set(ordered[: max(1, round(share * len(ordered)))])


def kept_pairs(
    rows: Sequence[dict[str, Any]], share: float, without: Collection[str] = ()
) -> tuple[list[int], set[str]]:
    """The places of the pairs whose prompts are in the share, and those prompts.

    Args:
        rows: pairs, of which `prompt` is read.
        share: of the prompts that they have, as in `labelled_prompts`.
        without: prompts that are left out before.
    """
    known = {row["prompt"] for row in rows} - set(without)
    prompts = labelled_prompts(known, share)
    return [place for place, row in enumerate(rows) if row["prompt"] in prompts], prompts


def batch_units(rows: Sequence[dict[str, Any]], batch_of: Literal["pairs", "prompts"]) -> int:
    """How many of what a batch counts the pairs make: themselves, or their prompts."""
    return len({row["prompt"] for row in rows} if batch_of == "prompts" else rows)
