"""What can't teach a preference is left out, and counted by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from betaflow.data.files import Row
from betaflow.data.schema import Dropped, Pair, content_id, text_of


def clean_pairs(rows: Iterable[Pair | Dropped]) -> tuple[list[Pair], Counter[str]]:
    """Return the pairs worth keeping, sorted by id, and how many rows went for each reason.

    Ids are hashes, so the order looks random but depends on the content alone: the same rows
    in another order give the same list. Kept and dropped add up to the rows read.
    """
    kept: dict[str, Pair] = {}
    dropped: Counter[str] = Counter()
    for row in rows:
        reason = row.reason if isinstance(row, Dropped) else _fault(row, kept)
        if reason:
            dropped[reason] += 1
        elif isinstance(row, Pair):
            kept[row.id] = row
    return [kept[key] for key in sorted(kept)], dropped


def _fault(pair: Pair, kept: dict[str, Pair]) -> str | None:
    chosen, rejected = text_of(pair.chosen).strip(), text_of(pair.rejected).strip()
    if not text_of(pair.prompt).strip():
        return "empty prompt"
    if not chosen or not rejected:
        return "empty completion"
    if chosen == rejected:
        return "equal completions"
    if pair.id in kept:
        return "duplicate"
    return None


def clean_documents(rows: Iterable[Row]) -> tuple[list[Row], Counter[str]]:
    """Return SFT documents without empty and repeated ones, sorted by content hash; counts."""
    kept: dict[str, Row] = {}
    dropped: Counter[str] = Counter()
    for row in rows:
        key = content_id(row)
        if not text_of(row["messages"] if "messages" in row else row["text"]).strip():
            dropped["empty text"] += 1
        elif key in kept:
            dropped["repeated text"] += 1
        else:
            kept[key] = row
    return [kept[key] for key in sorted(kept)], dropped
