from __future__ import annotations

import random
from typing import Any

from betaflow.data.clean import clean_documents, clean_pairs
from betaflow.data.schema import Dropped, Pair, make_pair

ROWS: list[Pair | Dropped] = [
    make_pair("p", " good", " bad"),
    make_pair("p", " good", " bad"),
    make_pair("p", " bad", " good"),
    make_pair("p", " ", " bad"),
    make_pair("p", " same", " same\n"),
    make_pair(" \n", " good", " bad"),
    make_pair(
        [{"role": "user", "content": "p"}], *([{"role": "assistant", "content": c}] for c in "a ")
    ),
    Dropped("some reason"),
    Dropped("some reason"),
]


def test_every_row_is_kept_or_counted() -> None:
    kept, dropped = clean_pairs(ROWS)
    assert {pair[1:] for pair in kept} == {("p", " good", " bad"), ("p", " bad", " good")}
    assert dropped == {
        "duplicate": 1,
        "empty completion": 2,
        "equal completions": 1,
        "empty prompt": 1,
        "some reason": 2,
    }
    assert len(kept) + dropped.total() == len(ROWS)


def test_order_does_not_matter() -> None:
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    assert clean_pairs(shuffled) == clean_pairs(ROWS)


def test_documents() -> None:
    messages = [{"role": "user", "content": "p"}]
    rows: list[dict[str, Any]] = [
        {"text": "a"},
        {"text": "a"},
        {"text": " \n"},
        {"messages": messages},
    ]
    kept, dropped = clean_documents(rows)
    assert sorted(map(str, kept)) == sorted(map(str, [{"text": "a"}, {"messages": messages}]))
    assert dropped == {"repeated text": 1, "empty text": 1}
