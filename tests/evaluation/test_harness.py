"""lm-eval on an engine: what is asked of it, and this repository's own tasks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import processors

from betaflow.errors import UserError
from betaflow.evaluation.harness import _adapter, run_harness
from betaflow.policy.loading import load_tokenizer
from betaflow.policy.scratch import train_tokenizer
from betaflow.sampling.engine import Completion, Request, Scored
from betaflow.sampling.hf_engine import HFEngine

pytest.importorskip("lm_eval")

LONGEST = 128


class Recorder:
    """An engine that keeps what it is asked, and answers with the number of the request."""

    name = "hf"
    max_length = LONGEST

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.requests: list[Request] = []
        self.scored: list[tuple[str, str]] = []

    def generate(self, requests: list[Request]) -> list[Completion]:
        self.requests += requests
        return [Completion([5], f"{n}.", "length", -1.0) for n in range(len(requests))]

    def score(self, pairs: list[tuple[list[int], list[int]]]) -> list[Scored]:
        self.scored += [(self.decode(context), self.decode(target)) for context, target in pairs]
        return [Scored(-float(len(target)), True) for _, target in pairs]

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


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


SAMPLED = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12, "until": []}


def test_what_is_asked_again_is_drawn_anew(tiny: Path) -> None:
    engine = HFEngine.load(tiny, batch_size=8)
    repeats = [("the plot", SAMPLED)] * 4
    drawn = ask(engine, *repeats, ("the end", SAMPLED))
    assert len(set(drawn[:4])) == 4
    # Neither what else is asked, nor the order, changes a draw.
    assert ask(engine, ("the end", SAMPLED), *repeats) == [drawn[4], *drawn[:4]]
    assert len(set(ask(engine, *[("the plot", {**SAMPLED, "do_sample": False})] * 4))) == 1


def test_documents_and_settings_have_noise_of_their_own(engine: Recorder) -> None:
    other = {**SAMPLED, "seed": 2}  # as tasks of robustness ask for
    ask(engine, *[(text, how) for text in ("a", "b") for how in (SAMPLED, other, SAMPLED)])
    assert len({request.seed for request in engine.requests}) == 6


@pytest.mark.parametrize(
    ("how", "temperature"),
    [
        ({}, 0.0),
        ({"do_sample": False, "temperature": 0.0}, 0.0),
        ({"do_sample": False, "temperature": 1, "top_p": 0.95, "top_k": 40}, 0.0),
        ({"temperature": 0, "top_p": 0.95, "min_p": 0.1}, 0.0),
        ({"temperature": 0.7}, 0.7),  # lm-eval's: it need not say that it samples
        ({"do_sample": True, "temperature": 0.7, "top_p": 1.0, "top_k": -1, "min_p": 0}, 0.7),
        ({"do_sample": True, "temperature": 0.7, "top_p": None, "num_beams": 1}, 0.7),
    ],
)
def test_options_that_change_no_draw_are_harmless(
    engine: Recorder, how: dict[str, Any], temperature: float
) -> None:
    ask(engine, ("the plot", how))
    assert engine.requests[0].temperature == temperature


@pytest.mark.parametrize(
    ("option", "value", "how"),
    [
        ("top_p", 0.95, SAMPLED),
        ("top_k", 40, SAMPLED),
        ("min_p", 0.1, SAMPLED),
        ("repetition_penalty", 1.2, SAMPLED),
        ("repetition_penalty", 1.2, {"temperature": 0}),
        ("num_beams", 4, {"do_sample": False}),
    ],
)
def test_text_by_other_options_is_refused(
    engine: Recorder, option: str, value: float, how: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=f"a_task asks for text with {option} {value}"):
        ask(engine, ("the plot", {**how, option: value}))
    assert not engine.requests


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens"])
def test_a_budget_has_all_the_names_that_lm_eval_gives_it(engine: Recorder, name: str) -> None:
    ask(engine, ("the plot", {name: 7}), ("the plot", {}))
    named, room = (request.max_new_tokens for request in engine.requests)
    assert named == 7 < room


TEXTS = ["7", "[1, 2]", "['a']", "{{ 1 }}", "the end\n", "the plot was dull."]


def test_own_tasks_take_every_text_as_it_is(
    engine: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval reads what a template makes of it: "7" as a number, "[1, 2]" as a list."""
    rows = {
        "out/pairs/eval.jsonl": [{"prompt": t, "chosen": " 7", "rejected": t} for t in TEXTS],
        "out/pairs/text_eval.jsonl": [{"text": text} for text in TEXTS],
        "out/data/cloze.jsonl": [{"query": t, "choices": ["7", t], "gold": 0} for t in TEXTS],
    }
    for name, found in rows.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", "")  # put back what `run_harness` sets
    scored = {}
    for task in ("preference", "perplexity", "cloze"):
        engine.scored = []
        result = run_harness(
            engine, [f"betaflow_{task}"], limit=None, cache=tmp_path / "cache" / task
        )
        assert result["n_samples"] == {f"betaflow_{task}": len(TEXTS)}
        scored[task] = {"".join(pair) for pair in engine.scored}
    assert scored["preference"] == {t + end for t in TEXTS for end in (" 7", t)}
    assert scored["perplexity"] == set(TEXTS)
    assert scored["cloze"] == {f"{t} {choice}" for t in TEXTS for choice in ("7", t)}


@pytest.mark.parametrize("bos", [True, False])
def test_a_context_is_never_empty(bos: bool) -> None:
    tokenizer = train_tokenizer(["lovely"] * 9, 300)
    if not bos:
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    engine: Any = SimpleNamespace(tokenizer=tokenizer)
    pair = _adapter(engine)._encode_pair("lov", "ely")  # one token, over the border
    assert pair == ([tokenizer.bos_token_id], [tokenizer.convert_tokens_to_ids("lovely")])
