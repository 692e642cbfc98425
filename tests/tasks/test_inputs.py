from __future__ import annotations

from pathlib import Path

import pytest

from betaflow.errors import UserError
from betaflow.io import write_jsonl
from betaflow.policy.loading import load_tokenizer
from tasks._inputs import held_out_prompts


def test_no_held_out_prompt_is_told_from_none_that_is_short_enough(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer, path = load_tokenizer(tiny), Path("out/data/prompts_eval.jsonl")
    path.parent.mkdir(parents=True)
    write_jsonl(path, [])
    with pytest.raises(UserError, match=r"holds no prompt; .* data.eval_fraction"):
        held_out_prompts(tokenizer, 64, 8)
    write_jsonl(path, [{"id": "a", "prompt": "the plot of this movie was very good"}])
    with pytest.raises(UserError, match=r"short enough; raise pairs.max_prompt_tokens"):
        held_out_prompts(tokenizer, 2, 8)
    assert len(held_out_prompts(tokenizer, 64, 8)) == 1
