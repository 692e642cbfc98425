"""Which tokenizers are refused, and what helps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import processors

from betaflow.errors import UserError
from betaflow.policy.loading import load_tokenizer
from betaflow.policy.scratch import train_tokenizer


def test_a_tokenizer_that_appends_eos_is_refused_and_its_config_mends_it(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["the plot was good"] * 9, 300)
    bos, eos = str(tokenizer.bos_token), str(tokenizer.eos_token)
    expected = tokenizer("the plot").input_ids
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        special_tokens=[(bos, tokenizer.bos_token_id), (eos, tokenizer.eos_token_id)],
    )
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"appends EOS .* set add_eos_token: false in its token"):
        load_tokenizer(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    values = {**json.loads(config.read_text()), "add_eos_token": False, "add_bos_token": True}
    config.write_text(json.dumps(values))
    assert load_tokenizer(tmp_path)("the plot").input_ids == expected
