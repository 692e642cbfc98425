"""Which tokenizers are refused, and what is written can be used by others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from betaflow.errors import UserError
from betaflow.policy.loading import load_policy, load_tokenizer, save_model
from betaflow.policy.scratch import train_tokenizer


def test_what_others_generate_from_a_saved_model_ends_at_the_tokenizer_s_eos(
    tiny: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_policy(tiny), load_tokenizer(tiny)
    greedy = {"do_sample": False, "max_new_tokens": 12}
    prompt = torch.tensor([[1, 30, 31]])
    free = model.generate(prompt, **greedy)[0, 3:].tolist()
    assert len(free) == 12
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(free[4])
    model.generation_config.repetition_penalty = 1.5  # as a hub model may bring
    save_model(model, tokenizer, tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    first = free.index(free[4])
    assert saved.generate(prompt, **greedy)[0, 3:].tolist() == free[: first + 1]


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
