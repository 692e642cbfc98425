"""Both engines behind the one interface: the same scores, the same greedy text, honest draws."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from betaflow.config import Params, ScratchSettings
from betaflow.data.pairs import sampled_pairs
from betaflow.data.tokenise import encode
from betaflow.errors import UserError
from betaflow.policy.loading import load_policy, load_tokenizer
from betaflow.policy.scratch import make_model
from betaflow.sampling.decode import Drawn
from betaflow.sampling.engine import Request, open_engine
from betaflow.sampling.hf_engine import HFEngine
from betaflow.sampling.parity import require_parity

PROMPTS = [[1, 30, 31], [1, 40], [1, 50, 51, 52, 53]]


@pytest.fixture(scope="module")
def engine(tiny: Path) -> HFEngine:
    return HFEngine.load(tiny, batch_size=2)


def test_greedy_draws_are_the_argmax_and_score_as_drawn(engine: HFEngine) -> None:
    drawn = engine.generate([Request(ids, 0.0, 0, 5) for ids in PROMPTS])
    pairs = [(p, c.token_ids) for p, c in zip(PROMPTS, drawn, strict=True)]
    for completion, scored in zip(drawn, engine.score(pairs), strict=True):
        assert scored.is_greedy
        assert completion.logprob == pytest.approx(scored.logprob, abs=1e-4)


def test_the_same_requests_draw_the_same_and_other_seeds_others(engine: HFEngine) -> None:
    def draw(seed: int) -> list[list[int]]:
        requests = [Request(ids, 1.0, seed, 12) for ids in PROMPTS]
        return [completion.token_ids for completion in engine.generate(requests)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_tempered_distribution(engine: HFEngine, temperature: float) -> None:
    engine = HFEngine(engine.model, engine.tokenizer, 512)
    count = 2048
    drawn = engine.generate([Request([1, 30], temperature, seed, 1) for seed in range(count)])
    found = Counter(completion.token_ids[0] for completion in drawn)
    with torch.no_grad():
        logits = engine.model(torch.tensor([[1, 30]])).logits[0, -1] / temperature
    expected = torch.softmax(logits, -1)
    for token in expected.topk(5).indices.tolist():
        p = float(expected[token])
        assert abs(found[token] / count - p) < 5 * (p * (1 - p) / count) ** 0.5


def test_log_probabilities_are_the_model_s_own_at_any_temperature(engine: HFEngine) -> None:
    (drawn,) = engine.generate([Request(PROMPTS[0], 0.5, 3, 6)])
    (scored,) = engine.score([(PROMPTS[0], drawn.token_ids)])
    assert drawn.logprob == pytest.approx(scored.logprob, abs=1e-4)


def test_an_unfinished_completion_says_so(engine: HFEngine) -> None:
    eos = engine.tokenizer.eos_token_id
    for completion in engine.generate([Request(ids, 1.0, 5, 8) for ids in PROMPTS * 20]):
        assert (completion.finish_reason == "stop") == (completion.token_ids[-1] == eos)
        assert eos not in completion.token_ids[:-1]
        assert len(completion.token_ids) <= 8


def test_a_draw_that_could_outgrow_the_model_is_refused(engine: HFEngine) -> None:
    assert len(engine.generate([Request([1] * 126, 0.0, 0, 2)])) == 1
    with pytest.raises(UserError, match=r"129 tokens .* 128 positions .* lower .*max_new_tokens"):
        engine.generate([Request([1, 30], 0.0, 0, 2), Request([1] * 126, 0.0, 0, 3)])


@pytest.fixture(scope="module")
def stripping(texts: list[str]) -> HFEngine:
    """A model with a tokenizer of Llama 2's kind: what it decodes has lost its first space."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    parts = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse())
    bpe.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"]
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    sizes = ScratchSettings(vocabulary=400, hidden=32, layers=1, heads=2, max_positions=256)
    return HFEngine(make_model(sizes, tokenizer, seed=0), tokenizer, 64)


def test_a_completion_s_text_has_the_space_before_it(stripping: HFEngine, texts: list[str]) -> None:
    tokenizer = stripping.tokenizer
    prompts = [" ".join(text.split(" ")[:4]) for text in texts]
    requests = [Request(tokenizer(p).input_ids, 1.0, n, 6) for n, p in enumerate(prompts)]
    spaces = set()
    for prompt, request, drawn in zip(prompts, requests, stripping.generate(requests), strict=True):
        spaces.add(drawn.text.startswith(" "))
        whole = tokenizer.decode(request.prompt_ids + drawn.token_ids, skip_special_tokens=True)
        assert prompt + drawn.text == whole
    assert spaces == {True, False}


def test_pairs_are_encoded_to_the_tokens_that_were_drawn(
    stripping: HFEngine, texts: list[str], params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = stripping.tokenizer
    words = [text.split(" ") for text in texts]
    prompts = [" ".join(some[:4]) for some in words]
    ends = [" " + " ".join(some[4:]) for some in words]
    drawn = set()

    def decode(_: Any, prompts: list[list[int]], seeds: list[int], **__: Any) -> list[Drawn]:
        found = []
        for ids, seed in zip(prompts, seeds, strict=True):
            prompt = tokenizer.decode(ids, skip_special_tokens=True)
            completion = encode(tokenizer, prompt, ends[seed % len(ends)]).completion
            drawn.add((*ids, *completion))
            found.append(Drawn(completion, 0.0))
        return found

    monkeypatch.setattr("betaflow.sampling.hf_engine.decode", decode)
    rows = [
        {"id": str(n), "text": prompt, "ids": tokenizer(prompt).input_ids}
        for n, prompt in enumerate(prompts)
    ]
    asked = []
    pairs, _ = sampled_pairs(rows, stripping, lambda text: asked.append(text) or 0.0, params.pairs)
    assert len(pairs) > len(prompts)
    for pair in pairs:
        for side in ("chosen", "rejected"):
            assert pair[side] in ends
            found = encode(tokenizer, pair["prompt"], pair[side])
            assert (*found.prompt, *found.completion) in drawn
    assert set(asked) <= {prompt + end for prompt in prompts for end in ends}


def test_parity_is_demanded() -> None:
    assert require_parity([-1.0], [-1.001], [2], tolerance=1e-3, what="x") < 1e-3
    nan = float("nan")
    for engine, plain in (
        ([-1.0], [-2.0]),
        ([nan], [-1.0]),
        ([-1.0, nan], [-1.0, -1.0]),
        ([], []),
    ):
        with pytest.raises(UserError):
            require_parity(engine, plain, [1] * len(engine), tolerance=1e-3, what="x")


VLLM = """
import json, sys, torch
torch.set_num_threads(1)
from betaflow.sampling.engine import Request, open_engine
engine = open_engine("vllm", sys.argv[1], threads=1)
prompts = json.loads(sys.argv[2])
requests = [Request(p, t, s, 8) for t in (0.0, 1.0) for s in (1, 2) for p in prompts]
drawn = engine.generate(requests)
many = engine.generate([Request([1, *range(30, 69)], 1.0, n, 8) for n in range(200)])
assert many[:3] == engine.generate([Request([1, *range(30, 69)], 1.0, n, 8) for n in range(3)])
backwards = engine.generate(requests[::-1])[::-1]
pairs = [(r.prompt_ids, c.token_ids) for r, c in zip(requests, drawn)]
print("RESULT" + json.dumps({
    "drawn": [c._asdict() for c in drawn],
    "backwards": [c.token_ids for c in backwards],
    "scores": [s._asdict() for s in engine.score(pairs)],
    "max_length": engine.max_length,
}))
"""


def vllm_of(folder: Path, **variables: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", VLLM, str(folder), json.dumps(PROMPTS)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | variables,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT"))
    return found


def test_vllm_gives_hugging_face_s_numbers(tiny: Path, engine: HFEngine) -> None:
    found = vllm_of(tiny)
    requests = [Request(p, t, s, 8) for t in (0.0, 1.0) for s in (1, 2) for p in PROMPTS]
    drawn = found["drawn"]
    # With a seed a request, the order of the requests does not matter.
    assert [c["token_ids"] for c in drawn] == found["backwards"]
    pairs = [(r.prompt_ids, c["token_ids"]) for r, c in zip(requests, drawn, strict=True)]
    for completion, theirs, ours in zip(drawn, found["scores"], engine.score(pairs), strict=True):
        assert theirs["logprob"] == pytest.approx(ours.logprob, abs=1e-3)
        assert completion["logprob"] == pytest.approx(ours.logprob, abs=1e-3)
        assert theirs["is_greedy"] == ours.is_greedy
    greedy = engine.generate(requests[:3])
    assert [c.token_ids for c in greedy] == [c["token_ids"] for c in drawn[:3]]
    assert [c.text for c in greedy] == [c["text"] for c in drawn[:3]]
    assert found["max_length"] == engine.max_length == 128


def test_vllm_opens_a_model_whose_context_does_not_fit_and_compiles_nothing_on_a_cpu(
    tiny: Path, tmp_path: Path
) -> None:
    """The cache has 1 GiB here, and a token of this model takes 1 KiB."""
    folder, compiled = tmp_path / "long", tmp_path / "compiled"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    positions = 2**21
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
    found = vllm_of(folder, TORCHINDUCTOR_CACHE_DIR=str(compiled), VLLM_CPU_KVCACHE_SPACE="1")
    assert positions / 4 < found["max_length"] < positions
    assert [c["token_ids"] for c in found["drawn"]] == found["backwards"]
    assert not [path for path in compiled.rglob("*") if path.is_file()]


def test_a_missing_vllm_is_said_and_nothing_else_takes_its_place(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="engine: hf"):
        open_engine("vllm", tiny, threads=1)


def test_weights_in_training_are_the_ones_that_draw(tiny: Path) -> None:
    model = load_policy(tiny)
    engine = HFEngine(model, load_tokenizer(tiny), 4)
    before = engine.generate([Request(PROMPTS[0], 0.0, 0, 4)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.std())
    assert engine.generate([Request(PROMPTS[0], 0.0, 0, 4)]) != before
