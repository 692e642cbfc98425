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
"""lm-eval on an engine: what is asked of it, and this repository's own tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from betaflow.evaluation.harness import _adapter
from betaflow.policy.loading import load_tokenizer
from betaflow.sampling.engine import Completion, Request, Scored

LONGEST = 128


class Recorder:
    """An engine that keeps what it is asked, and answers with the number of the request."""

    name = "hf"
    max_length = LONGEST

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.requests: list[Request] = []

    def generate(self, requests: list[Request]) -> list[Completion]:
        self.requests += requests
        return [Completion([5], f"{n}.", "length", -1.0) for n in range(len(requests))]

    def score(self, pairs: list[tuple[list[int], list[int]]]) -> list[Scored]:
        return [Scored(-float(len(target)), True) for _, target in pairs]


@pytest.fixture
def engine(tiny: Path) -> Recorder:
    return Recorder(load_tokenizer(tiny))


def ask(engine: Any, *asked: tuple[str, dict[str, Any]]) -> list[str]:
    from lm_eval.api.instance import Instance

    requests = [
        Instance("generate_until", {}, arguments, 0, metadata=("a_task", n, 1))
        for n, arguments in enumerate(asked)
    ]
    found: list[str] = _adapter(engine).generate_until(requests)
    return found


@pytest.mark.parametrize(
    ("context", "budget", "kept", "left"),
    [
        (100, 20, 100, 20),
        (100, 64, 64, 64),  # lm-eval's: the context makes room
        (100, 100, 64, 64),
        (40, 100, 40, 88),  # the budget does, to half of the positions
        (200, LONGEST, 64, 64),
        (200, 1280, 64, 64),
        (1, LONGEST, 1, 127),
        (0, LONGEST, 1, 127),
    ],
)
def test_context_and_budget_fit_the_positions(
    engine: Recorder, context: int, budget: int, kept: int, left: int
) -> None:
    text = "!?" * (context // 2 - 1) + "!" if context > 1 else ""
    if context == 0:
        engine.tokenizer.backend_tokenizer.post_processor = None
    ids = engine.tokenizer(text).input_ids
    assert len(ids) == context
    assert ask(engine, (text, {"max_gen_toks": budget, "until": ["."]})) == ["0"]
    (request,) = engine.requests
    assert request.prompt_ids == (ids[-kept:] or [engine.tokenizer.bos_token_id])
    assert len(request.prompt_ids) == kept and request.max_new_tokens == left
    assert kept + left <= LONGEST
