"""SFT and the reward model on a tiny model: what must hold whatever the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from preferences import sequences

from betaflow.config import Params
from betaflow.data.tokenise import Encoded
from betaflow.errors import UserError
from betaflow.policy.loading import load_policy, load_reward_model, load_tokenizer
from betaflow.training.reward import train_reward
from betaflow.training.sft import packing_is_exact, train_sft

QUICK = {
    "batch_of": "pairs",
    "batch_size": 8,
    "micro_batch_size": 4,
    "warmup_steps": 0,
    "schedule": "constant",
}


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def test_the_reward_model_learns_to_tell_them_apart(tiny: Path, params: Params) -> None:
    model = load_reward_model(tiny, new_head_seed=0)
    pairs = sequences(48, True), sequences(48, False)
    settings = params.reward.model_copy(update={**QUICK, "epochs": 6.0, "learning_rate": 3e-3})
    trained, figures, margins = train_reward(
        model, pairs, pairs, settings, pad=0, precision="float32", fingerprint="r"
    )
    assert figures["eval/accuracy"] > 0.95
    assert trained.metrics[-1]["loss"] < trained.metrics[0]["loss"]
    assert figures["eval/pairs"] == len(margins) == 48
    assert figures["eval/accuracy"] == pytest.approx(sum(m > 0 for m in margins) / 48)


def test_a_reward_model_that_only_gets_worse_held_out_stops_and_goes_back(
    tiny: Path, params: Params
) -> None:
    chosen, rejected = sequences(48, True), sequences(48, False)
    early = {"epochs": 8.0, "learning_rate": 3e-3, "eval_every": 2, "patience": 2}
    settings = params.reward.model_copy(update={**QUICK, **early})

    def run(held_out: tuple[list[Encoded], list[Encoded]], fingerprint: str) -> Any:
        model = load_reward_model(tiny, new_head_seed=0)
        options = {"pad": 0, "precision": "float32", "fingerprint": fingerprint}
        return train_reward(model, (chosen, rejected), held_out, settings, **options)

    trained, figures, _ = run((rejected, chosen), "turned round")
    looks = [row for row in trained.metrics if "eval/loss" in row]
    assert [row["step"] for row in looks] == [1, 3, 5]
    assert len(trained.metrics) < 48 * 8 // settings.batch_size
    assert trained.best_step == looks[0]["step"]
    assert figures["eval/loss"] == pytest.approx(looks[0]["eval/loss"], abs=1e-6)
    whole, _, _ = run((chosen, rejected), "the same")
    assert len(whole.metrics) > len(trained.metrics)


def test_sft_learns_and_packing_is_exact(tiny: Path, texts: list[str], params: Params) -> None:
    model, tokenizer = load_policy(tiny), load_tokenizer(tiny)
    documents = [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in texts]
    documents = [d for d in documents if len(d) <= 120]
    assert packing_is_exact(model, documents, 0)
    changes = {**QUICK, "block_tokens": 120, "epochs": 3.0, "learning_rate": 3e-3}
    settings = params.sft.model_copy(update=changes)
    options = {"pad": 0, "precision": "float32"}
    trained, figures = train_sft(
        model, documents[20:], documents[:20], settings, fingerprint="s", **options
    )
    assert trained.metrics[-1]["loss"] < 0.7 * trained.metrics[0]["loss"]
    assert figures["eval/perplexity"] == pytest.approx(math.exp(figures["eval/loss"]), rel=1e-5)
    # The held-out loss is the mean over tokens of each document alone.
    total = tokens = 0.0
    with torch.no_grad():
        for document in documents[:20]:
            ids = torch.tensor([document])
            total += float(model(ids, labels=ids).loss) * (len(document) - 1)
            tokens += len(document) - 1
    assert figures["eval/loss"] == pytest.approx(total / tokens, rel=1e-4)


def test_blocks_beyond_the_model_s_positions_are_refused(tiny: Path, params: Params) -> None:
    settings = params.sft.model_copy(update={"block_tokens": 129})
    options = {"pad": 0, "precision": "float32", "fingerprint": "s"}
    with pytest.raises(UserError, match=r"block of 129 tokens is .* 128 .*lower sft.block_tokens"):
        train_sft(load_policy(tiny), [[1, 2, 3]], [], settings, **options)


def test_a_model_that_can_t_be_packed_is_found_out(tiny: Path, texts: list[str]) -> None:
    """One that ignores positions lets a block's documents see each other."""

    class Deaf(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = load_policy(tiny)

        def forward(self, input_ids, position_ids=None, **other):  # type: ignore[no-untyped-def]
            return self.inner(input_ids=input_ids, **other)

    tokenizer = load_tokenizer(tiny)
    documents = [tokenizer(text).input_ids for text in texts[:2]]
    assert not packing_is_exact(Deaf(), documents, 0)  # type: ignore[arg-type]
