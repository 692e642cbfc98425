"""What lm-eval asks of an engine, from tokenizers of every kind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import processors

from betaflow.evaluation.harness import _adapter
from betaflow.policy.scratch import train_tokenizer

pytest.importorskip("lm_eval")


@pytest.mark.parametrize("bos", [True, False])
def test_a_context_is_never_empty(bos: bool) -> None:
    tokenizer = train_tokenizer(["lovely"] * 9, 300)
    if not bos:
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    engine: Any = SimpleNamespace(tokenizer=tokenizer)
    pair = _adapter(engine)._encode_pair("lov", "ely")  # one token, over the border
    assert pair == ([tokenizer.bos_token_id], [tokenizer.convert_tokens_to_ids("lovely")])
