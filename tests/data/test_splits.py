from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from betaflow.data.files import read_jsonl_rows
from betaflow.data.schema import Pair
from betaflow.data.splits import in_eval, opening
from betaflow.data.transcripts import ASSISTANT, parse_transcripts


def test_the_split_never_moves() -> None:
    # A change here means that old eval prompts are now trained on.
    held_out = [n for n in range(40) if in_eval(f"prompt {n}", 0.2)]
    assert held_out == [0, 8, 24]


def test_the_share_is_about_right() -> None:
    share = sum(in_eval(f"prompt {n}", 0.1) for n in range(10_000)) / 10_000
    assert abs(share - 0.1) < 0.01


@settings(deadline=None)
@given(st.text(), st.floats(0.01, 0.5))
def test_a_larger_fraction_only_adds(prompt: str, fraction: float) -> None:
    assert in_eval(prompt, fraction) <= in_eval(prompt, fraction * 1.9)
    assert in_eval(prompt, fraction) == in_eval(f" {prompt}\n", fraction)


def test_a_conversation_stays_on_one_side() -> None:
    first = "\n\nHuman: Hi there\n\nAssistant:"
    assert opening(first) == opening(f"{first} Hello\n\nHuman: Why?\n\nAssistant:")
    assert opening(first) == opening(f" {first} Hello\n\nHuman: Why?\n\nAssistant:")
    system = {"role": "system", "content": "Be brief"}
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
    assert opening([system, user]) == opening([system, user, answer, user])
    assert opening([user]) != opening([system, user])
    assert opening("Say:\n\nAssistant: no") != opening("Say:")


def test_a_greeting_does_not_put_every_conversation_on_one_side() -> None:
    greeting = {"role": "assistant", "content": "Hi! I am your guide."}
    system = {"role": "system", "content": "Be brief"}
    for head in ([greeting], [system, greeting], [greeting, system]):
        talks = [[*head, {"role": "user", "content": f"question {n}"}] for n in range(1000)]
        assert 0.05 < sum(in_eval(talk, 0.1) for talk in talks) / 1000 < 0.15
        assert opening(talks[0]) == opening([*talks[0], greeting, *talks[1]])
    assert opening([system, greeting, system]) == opening([system])


def test_no_held_out_answer_lies_in_real_training_text(hh_file: Path) -> None:
    pairs = [parse_transcripts(row, where) for where, row in read_jsonl_rows(hh_file)]
    prompts = [str(pair.prompt) for pair in pairs if isinstance(pair, Pair)]
    train = [prompt for prompt in prompts if not in_eval(prompt, 0.2)]
    held_out = {prompt for prompt in prompts if in_eval(prompt, 0.2)}
    assert len(train) > 1000 and len(held_out) > 200
    for prompt in train:
        parts = prompt.split(ASSISTANT)
        heads = {ASSISTANT.join([*parts[:n], ""]) for n in range(1, len(parts))}
        assert not heads & held_out
