"""Which tokenizers are refused, and what helps."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from betaflow.errors import UserError
from betaflow.policy.loading import load_tokenizer
from betaflow.policy.scratch import train_tokenizer


def test_a_tokenizer_that_appends_eos_is_refused_and_what_is_advised_mends_it(
    tmp_path: Path,
) -> None:
    tokenizer = train_tokenizer(["the plot was good"] * 9, 300)
    bos, eos = str(tokenizer.bos_token), str(tokenizer.eos_token)
    expected = tokenizer("the plot").input_ids
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        special_tokens=[(bos, tokenizer.bos_token_id), (eos, tokenizer.eos_token_id)],
    )
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"appends EOS .* set its add_eos_token = False"):
        load_tokenizer(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    loaded.add_eos_token, loaded.add_bos_token = False, True
    loaded.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)("the plot").input_ids == expected
