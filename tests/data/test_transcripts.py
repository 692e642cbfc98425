from __future__ import annotations

from pathlib import Path

import pytest

from betaflow.data.clean import clean_pairs
from betaflow.data.files import read_jsonl_rows
from betaflow.data.schema import Dropped, Pair
from betaflow.data.transcripts import ASSISTANT, parse_transcripts
from betaflow.errors import UserError

TALK = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"


def test_split_at_the_last_assistant_turn() -> None:
    pair = parse_transcripts({"chosen": f"{TALK} Because.", "rejected": f"{TALK} No."}, "f:1")
    assert isinstance(pair, Pair)
    assert pair[1:] == (TALK, " Because.", " No.")


@pytest.mark.parametrize(
    ("rejected", "reason"),
    [
        ("\n\nHuman: Hi\n\nAssistant: No.", "differ before the last turn"),
        (TALK.replace("Hello", "Hullo") + " No.", "differ before the last turn"),
        (f"{TALK} No.\n\nHuman: Oh", "not the Assistant's"),
    ],
)
def test_what_is_not_a_pair_is_dropped(rejected: str, reason: str) -> None:
    row = parse_transcripts({"chosen": f"{TALK} Because.", "rejected": rejected}, "f:1")
    assert isinstance(row, Dropped)
    assert reason in row.reason


@pytest.mark.parametrize(
    ("rejected", "message"),
    [
        ("\n\nHuman: Hi", r"f:1: `rejected` has no '\\n\\nAssistant:'"),
        ("\n\nAssistant: Hi", r"f:1: `rejected` has no '\\n\\nHuman:'"),
        ([{"role": "user", "content": "Hi"}], "f:1: `rejected` must be a transcript"),
        (None, "f:1: `rejected` is null"),
    ],
)
def test_rows_without_tags_are_errors(rejected: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_transcripts({"chosen": f"{TALK} Because.", "rejected": rejected}, "f:1")


def test_the_real_file(hh_file: Path) -> None:
    rows = list(read_jsonl_rows(hh_file))
    parsed = [parse_transcripts(row, where) for where, row in rows]
    pairs, dropped = clean_pairs(parsed)
    assert len(rows) == 1600
    assert len(pairs) == 1594
    assert dropped == {"chosen and rejected differ before the last turn": 3, "empty completion": 3}
    for (_, row), pair in zip(rows, parsed, strict=True):
        if isinstance(pair, Pair):
            assert isinstance(pair.prompt, str) and pair.prompt.endswith(ASSISTANT)
            assert pair.prompt + str(pair.chosen) == row["chosen"]
            assert pair.prompt + str(pair.rejected) == row["rejected"]
