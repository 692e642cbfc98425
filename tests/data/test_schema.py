from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from betaflow.data.schema import Dropped, Pair, content_id, make_pair, parse_pair
from betaflow.errors import UserError


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


USER, GOOD, BAD = message("user", "Hi"), message("assistant", "Hello!"), message("assistant", "No.")


def test_text_row() -> None:
    pair = parse_pair({"prompt": "Hi", "chosen": " a", "rejected": " b", "score": 3}, "f:1")
    assert isinstance(pair, Pair)
    assert pair[1:] == ("Hi", " a", " b")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, {**GOOD, "name": None}], "rejected": [USER, BAD]},
    ],
)
def test_every_way_to_write_a_conversation_is_one_pair(row: dict[str, Any]) -> None:
    assert parse_pair(row, "f:1") == make_pair([USER], [GOOD], [BAD])


def test_conversations_that_part_early_are_dropped() -> None:
    other = message("user", "Hey")
    row = {"chosen": [USER, GOOD], "rejected": [other, BAD]}
    assert parse_pair(row, "f:1") == Dropped("chosen and rejected differ before the last turn")


def test_equal_conversations_keep_their_last_turn() -> None:
    pair = parse_pair({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "f:1")
    assert isinstance(pair, Pair)
    assert pair.chosen == pair.rejected == [GOOD]


TEXT = {"prompt": "p", "chosen": "c", "rejected": "r"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "rejected": "r"}, "`chosen` is missing"),
        ({**TEXT, "rejected": None}, "`rejected` is null"),
        ({"chosen": "c", "rejected": "r"}, "`prompt` is missing"),
        ({**TEXT, "chosen": 3}, "`chosen` must be text or a list of messages, not int"),
        ({**TEXT, "chosen": []}, "`chosen` is an empty list"),
        ({**TEXT, "chosen": ["c"]}, r"`chosen\[0\]` must be a message"),
        ({**TEXT, "chosen": [GOOD]}, "must be both text, or both"),
        ({**TEXT, "prompt": [USER]}, "`prompt` is a list of messages, but"),
        ({**TEXT, "prompt": "half \ud83d"}, "`prompt` holds an escape that is not a character"),
        ({"chosen": [{"role": "user"}], "rejected": []}, r"`chosen\[0\].content` must be text"),
        ({"chosen": [{**GOOD, "tool_calls": []}], "rejected": [BAD]}, "tool_calls; remove"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "holds a single message: give a prompt"),
        ({"prompt": "Hi", "chosen": [GOOD], "rejected": [USER, BAD]}, "both be the answer alone"),
        ({"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [BAD]}, "both be the answer alone"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [BAD]}, "`chosen` must be one assistant"),
        ({"prompt": [USER, GOOD], "chosen": [GOOD], "rejected": [BAD]}, "end before the assistant"),
        ({"prompt": "Bye", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "not one of the mess"),
    ],
)
def test_malformed_rows_name_place_and_key(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_pair(row, "pairs.jsonl:17")
    assert str(error.value).startswith("pairs.jsonl:17: ")


def test_ids_depend_on_content_alone() -> None:
    # A change here changes the id of every pair ever made.
    assert make_pair("p", "c", "r").id == "70ba417369466f65"
    assert content_id({"a": "é", "b": 1}) == content_id({"b": 1, "a": "é"})
    assert make_pair("p", "r", "c").id != make_pair("p", "c", "r").id
    assert make_pair("pc", "", "r").id != make_pair("p", "c", "r").id


SCALARS = st.sampled_from([None, True, 3, "", "Hi", "é"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": SCALARS, "content": SCALARS}), max_size=3)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | MESSAGES
TALKS = st.lists(st.sampled_from([USER, GOOD, BAD]), max_size=4)
ROWS = st.fixed_dictionaries(
    {}, optional={name: VALUES | TALKS for name in ("prompt", "chosen", "rejected")}
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ROWS)
def test_any_row_is_a_pair_or_dropped_or_one_clear_error(row: dict[str, Any]) -> None:
    try:
        pair = parse_pair(row, "f:1")
    except UserError as error:
        assert str(error).startswith("f:1: ")
        return
    if isinstance(pair, Pair) and not isinstance(pair.prompt, str):
        assert pair.prompt[-1]["role"] != "assistant"
        assert [message["role"] for message in (*pair.chosen, *pair.rejected)] == ["assistant"] * 2
