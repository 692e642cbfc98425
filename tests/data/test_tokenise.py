"""Prompt and completion to tokens: the border, EOS, padding, packing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from betaflow.data.packing import first_fit, pack
from betaflow.data.tokenise import Encoded, collate, encode, encode_prompt
from betaflow.policy.loading import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny)


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
