"""Prompt and completion to tokens: the border, EOS, cutting to a limit, padding, packing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from betaflow.data.packing import first_fit, pack
from betaflow.data.tokenise import (
    Encoded,
    Limits,
    collate,
    completion_text,
    cut_pair,
    encode,
    encode_prompt,
)
from betaflow.policy.loading import load_tokenizer
from betaflow.policy.scratch import train_tokenizer

BOS, EOS = 1, 2
Pair = tuple[Encoded, Encoded]


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny)


@pytest.fixture(scope="module")
def plain(texts: list[str]) -> PreTrainedTokenizerBase:
    """One that adds no BOS, and pads with EOS."""
    found = train_tokenizer(texts, 400)
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    found.pad_token = found.eos_token
    assert found("").input_ids == []
    return found


def test_a_token_that_merges_across_the_border_belongs_to_the_completion(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    merged = encode(tokenizer, "the plot w", "as dull.")
    whole = tokenizer("the plot was dull.").input_ids
    assert tokenizer.convert_ids_to_tokens(merged.completion)[0] == "Ġwas"
    assert merged.prompt + merged.completion == [*whole, tokenizer.eos_token_id]
    assert merged.prompt == encode_prompt(tokenizer, "the plot")


def test_eos_ends_a_finished_completion_once(tokenizer: PreTrainedTokenizerBase) -> None:
    eos = tokenizer.eos_token_id
    assert encode(tokenizer, "the plot", " was good.").completion.count(eos) == 1
    assert encode(tokenizer, "the plot", " was good.", finished=False).completion.count(eos) == 0
    assert encode(tokenizer, "the plot", f" was{tokenizer.eos_token}").completion.count(eos) == 1
    assert encode(tokenizer, "the plot", "").completion == [eos]


@settings(max_examples=60, deadline=None)
@given(prompt=st.text(min_size=1, max_size=30), completion=st.text(max_size=30))
def test_nothing_is_lost_whatever_the_text(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str
) -> None:
    found = encode(tokenizer, prompt, completion, finished=False)
    assert found.prompt + found.completion == tokenizer(prompt + completion).input_ids


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(max_size=30), tail=st.lists(st.integers(0, 399), max_size=12), at=st.floats(0, 1)
)
def test_byte_level_tokens_have_their_own_text_wherever_the_prompt_ends(
    tokenizer: PreTrainedTokenizerBase, text: str, tail: list[int], at: float
) -> None:
    """Within a character, too."""
    ids = [*tokenizer(text).input_ids, *tail]
    border = round(at * len(ids))
    found = completion_text(tokenizer, ids[:border], ids[border:])
    assert found == tokenizer.decode(ids[border:], skip_special_tokens=True)


def cut(pair: Pair, mode: str, prompt: int, completion: int, bos: int | None = BOS) -> Pair:
    return cut_pair(*pair, Limits(mode, prompt, completion), bos)  # type: ignore[arg-type]


def both(tokenizer: PreTrainedTokenizerBase, prompt: str, chosen: str, rejected: str) -> Pair:
    return encode(tokenizer, prompt, chosen), encode(tokenizer, prompt, rejected)


def test_a_prompt_keeps_its_start_or_its_end_and_a_leading_bos() -> None:
    pair = Encoded([BOS, 10, 11, 12, 13], [20, EOS]), Encoded([BOS, 10, 11, 12, 13], [21, EOS])
    for mode, expected in (("keep_start", [BOS, 10, 11]), ("keep_end", [BOS, 12, 13])):
        found = cut(pair, mode, 3, 2)
        assert found == (Encoded(expected, [20, EOS]), Encoded(expected, [21, EOS]))
    for bos in (None, 9):  # no BOS, or not this one
        assert cut(pair, "keep_start", 3, 2, bos)[0].prompt == [BOS, 10, 11]
        assert cut(pair, "keep_end", 3, 2, bos)[0].prompt == [11, 12, 13]
    assert cut(pair, "drop", 3, 1) == pair  # whoever drops it wants it whole


def test_a_completion_of_the_limit_keeps_its_eos_and_a_longer_one_loses_it() -> None:
    pair = Encoded([BOS, 10], [20, 21, EOS]), Encoded([BOS, 10], [30, 31, 32, EOS])
    for mode in ("keep_start", "keep_end"):  # which is about the prompt
        found = cut(pair, mode, 2, 3)
        assert [side.completion for side in found] == [[20, 21, EOS], [30, 31, 32]]
        assert cut(pair, mode, 2, 4) == pair


def test_limits_of_one_token() -> None:
    pair = Encoded([BOS, 10, 11], [20, EOS]), Encoded([BOS, 10, 11], [EOS])
    for mode in ("keep_start", "keep_end"):
        assert cut(pair, mode, 1, 1) == (Encoded([BOS], [20]), Encoded([BOS], [EOS]))
    assert cut(pair, "keep_end", 1, 1, None)[0].prompt == [11]


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_a_prompt_too_short_to_lose_as_many_loses_all(mode: str) -> None:
    pair = Encoded([BOS, 10, 11, 12, 13, 14], [EOS]), Encoded([BOS, 10, 11], [20, EOS])
    assert [len(side.prompt) for side in cut(pair, mode, 3, 9)] == [3, 1]
    assert [len(side.prompt) for side in cut(pair, mode, 3, 9, None)] == [3, 0]


def test_a_merge_at_the_border_leaves_both_prompts_losing_the_same(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """The prompt's last letters merge with one of the completions alone."""
    pair = both(tokenizer, "the plot and the acting w", "as dull.", "!")
    whole = [side.prompt for side in pair]
    assert whole[1] == [*whole[0], *whole[1][-1:]] and len(whole[0]) > 4
    limit = len(whole[1]) - 2
    chosen, rejected = cut(pair, "keep_end", limit, 99)
    assert chosen.prompt == [BOS, *whole[0][3:]]
    assert rejected.prompt == [*chosen.prompt, whole[1][-1]]
    assert (chosen.completion, rejected.completion) == (pair[0].completion, pair[1].completion)
    assert tokenizer.convert_ids_to_tokens(chosen.completion)[0] == "Ġwas"
    chosen, rejected = cut(pair, "keep_start", limit, 99)
    assert (chosen.prompt, rejected.prompt) == (whole[0][:-2], whole[1][:-2])
    # What decides is the longer prompt, though the shorter one would fit.
    assert cut(pair, "keep_end", len(whole[0]), 99)[0].prompt == [BOS, *whole[0][2:]]


def test_a_prompt_that_ends_in_white_space(tokenizer: PreTrainedTokenizerBase) -> None:
    pair = both(tokenizer, "the end ", "was dull.", " was good.")
    names = [tokenizer.convert_ids_to_tokens(side.prompt)[1:] for side in pair]
    assert names == [["the", "Ġend"], ["the", "Ġend", "Ġ"]]
    found = cut(pair, "keep_end", 3, 99)
    names = [tokenizer.convert_ids_to_tokens(side.prompt)[1:] for side in found]
    assert names == [["Ġend"], ["Ġend", "Ġ"]]
    assert [side.completion for side in found] == [side.completion for side in pair]


def test_an_empty_completion_and_one_that_ends_with_eos_itself(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Both are ended by one EOS, which is kept within the limit and lost above it."""
    text = f" was good.{tokenizer.eos_token}"
    pair = both(tokenizer, "the plot", "", text)
    assert pair[0].completion == [EOS]
    assert both(tokenizer, "the plot", tokenizer.eos_token, text) == pair
    length = len(pair[1].completion)
    assert cut(pair, "keep_end", 9, length) == pair
    chosen, rejected = cut(pair, "keep_end", 9, length - 1)
    assert chosen.completion == [EOS]
    assert rejected.completion == pair[1].completion[:-1] and EOS not in rejected.completion


def test_a_cut_inside_a_character_is_made_by_token(tokenizer: PreTrainedTokenizerBase) -> None:
    pair = both(tokenizer, "🙂🙂", "🙂🙃", "🙃🙂")
    assert [len(side.prompt) for side in pair] == [9, 9]  # a token a byte
    for limit in range(1, 9):
        chosen, rejected = cut(pair, "keep_end", limit + 1, limit)
        assert chosen.prompt == rejected.prompt == [BOS, *pair[0].prompt[-limit:]]
        assert chosen.completion == pair[0].completion[:limit]
        assert rejected.completion == pair[1].completion[:limit]
    chosen, rejected = cut(pair, "keep_end", 9, 3)
    assert chosen.completion == rejected.completion  # the two differ in the last of four bytes


def test_a_cut_pair_is_masked_by_position_though_pad_is_eos(
    plain: PreTrainedTokenizerBase,
) -> None:
    pair = both(plain, f"the plot{plain.eos_token}", " was good.", "")
    found = cut(pair, "keep_end", 2, 3, plain.bos_token_id)
    assert plain.pad_token_id == found[0].prompt[-1] == EOS
    batch = collate(list(found), plain.pad_token_id)
    for row, side in enumerate(found):
        length = len(side.prompt)
        kept = batch.input_ids[row][batch.completion_mask[row]].tolist()
        assert kept == side.completion
        assert not batch.completion_mask[row, :length].any()
        assert batch.attention_mask[row].sum() == side.length
    assert found[1].completion == [EOS]


TOKENS = st.lists(st.integers(BOS, 9), max_size=12)


@given(
    prompt=TOKENS,
    merged=st.integers(0, 3),
    completions=st.tuples(TOKENS, TOKENS),
    adds_bos=st.booleans(),
    swapped=st.booleans(),
    mode=st.sampled_from(["drop", "keep_start", "keep_end"]),
    limits=st.tuples(st.integers(1, 14), st.integers(1, 14)),
)
def test_a_cut_keeps_to_the_limits_and_to_the_tokens_that_were_there(
    prompt: list[int],
    merged: int,
    completions: tuple[list[int], list[int]],
    adds_bos: bool,
    swapped: bool,
    mode: str,
    limits: tuple[int, int],
) -> None:
    whole = [BOS, *prompt] if adds_bos else prompt
    shorter = whole[: max(len(whole) - merged, int(adds_bos))]
    pair = Encoded(whole, completions[0]), Encoded(shorter, completions[1])
    if swapped:
        pair = pair[::-1]
    bos = BOS if adds_bos else None
    found = cut(pair, mode, *limits, bos)
    if mode == "drop" or (len(whole) <= limits[0] and max(map(len, completions)) <= limits[1]):
        assert found == pair
        return
    lost = max(0, len(whole) - limits[0])
    for before, after in zip(pair, found, strict=True):
        assert len(after.prompt) <= limits[0] and len(after.completion) <= limits[1]
        assert after.completion == before.completion[: limits[1]]
        body, kept = before.prompt[adds_bos:], after.prompt[adds_bos:]
        assert after.prompt[:adds_bos] == before.prompt[:adds_bos]
        assert len(body) - len(kept) == min(lost, len(body))
        assert kept == (
            body[: len(kept)] if mode == "keep_start" else body[len(body) - len(kept) :]
        )
    few, many = sorted((side.prompt for side in found), key=len)
    assert many[: len(few)] == few  # they share what they shared
    assert cut(found, mode, *limits, bos) == found


def test_padding_that_equals_eos_is_masked_by_position() -> None:
    batch = collate([Encoded([5, 6], [7, 2]), Encoded([5], [2])], pad=2)
    assert batch.input_ids.tolist() == [[5, 6, 7, 2], [5, 2, 2, 2]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.completion_mask.tolist() == [
        [False, False, True, True],
        [False, True, False, False],
    ]


@given(st.lists(st.integers(1, 20), max_size=60))
def test_bins_hold_every_document_once_and_never_overflow(lengths: list[int]) -> None:
    bins = first_fit(lengths, 20)
    assert sorted(i for group in bins for i in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= 20 for group in bins)
    # First-fit leaves at most one bin half empty.
    assert sum(sum(lengths[i] for i in group) <= 10 for group in bins) <= 1


def test_a_block_restarts_positions_and_predicts_no_first_token() -> None:
    (block,) = pack([[1, 5, 6], [1, 7]], block=7, pad=0)
    assert block.input_ids.tolist() == [1, 5, 6, 1, 7, 0, 0]
    assert block.position_ids.tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert block.labels.tolist() == [-100, 5, 6, -100, 7, -100, -100]


def test_long_documents_are_cut_and_lone_tokens_left_out() -> None:
    blocks = pack([[1, 2, 3, 4, 5]], block=4, pad=0)
    assert [b.input_ids.tolist() for b in blocks] == [[1, 2, 3, 4]]
