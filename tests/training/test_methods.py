"""SFT, the reward model and PPO on a tiny model: what must hold whatever the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from preferences import sequences

from betaflow.config import Params
from betaflow.policy.loading import load_policy, load_reward_model, load_tokenizer
from betaflow.training import ppo
from betaflow.training.ppo import Models, ScoreScale, reference_scale, train_ppo
from betaflow.training.reward import train_reward
from betaflow.training.sft import packing_is_exact, train_sft

QUICK = {"batch_size": 8, "micro_batch_size": 4, "warmup_steps": 0, "schedule": "constant"}


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def test_the_reward_model_learns_to_tell_them_apart(tiny: Path, params: Params) -> None:
    model = load_reward_model(tiny, new_head_seed=0)
    pairs = sequences(48, True), sequences(48, False)
    settings = params.reward.model_copy(update={**QUICK, "epochs": 6.0, "learning_rate": 3e-3})
    trained, figures = train_reward(
        model, pairs, pairs, settings, pad=0, precision="float32", fingerprint="r"
    )
    assert figures["eval/accuracy"] > 0.95
    assert trained.metrics[-1]["loss"] < trained.metrics[0]["loss"]
    assert figures["eval/pairs"] == 48


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


def four(tiny: Path, reward: torch.nn.Module | None = None) -> Models:
    return Models(
        load_policy(tiny),
        load_policy(tiny).eval(),
        load_reward_model(tiny, new_head_seed=1),
        (reward or load_reward_model(tiny, new_head_seed=2)).eval(),
    )


def run_ppo(models: Models, tiny: Path, params: Params, **changes):  # type: ignore[no-untyped-def]
    settings = params.ppo.training.model_copy(
        update={
            **QUICK, "batch_size": 32, "micro_batch_size": 16, "iterations": 2, "epochs": 2,
            "max_new_tokens": 10, "critic_warmup": 0, **changes,
        }
    )  # fmt: skip
    prompts = [[1, 30 + n % 5] for n in range(40)]
    return train_ppo(
        models, load_tokenizer(tiny), prompts, settings, label="ppo", beta=0.02, peak_rate=3e-3,
        seed=0, scale=ScoreScale(0.0, 1.0), precision="float32", fingerprint="p",
    )  # fmt: skip


def test_ppo_starts_with_no_kl_and_a_ratio_of_one(tiny: Path, params: Params) -> None:
    first = run_ppo(four(tiny), tiny, params, iterations=1).metrics[0]
    assert first["reward/kl"] == pytest.approx(0, abs=1e-4)
    assert first["ratio_start"] == pytest.approx(1, abs=1e-5)
    assert 0 <= first["clip_fraction"] <= 1


def test_scores_are_normalised_on_the_reference_s_own_completions(
    tiny: Path, params: Params
) -> None:
    models = four(tiny)
    prompts = [[1, 30 + n % 5] for n in range(64)]
    settings = params.ppo.training.model_copy(update={"batch_size": 16, "max_new_tokens": 8})
    options = {"seed": 0, "precision": "float32"}
    scale = reference_scale(models, load_tokenizer(tiny), prompts, settings, **options)
    assert scale == reference_scale(models, load_tokenizer(tiny), prompts, settings, **options)
    assert scale.std > 0
    # The policy is the reference at first: its normalised scores have mean 0, but for noise.
    settings = settings.model_copy(update={"missing_eos_penalty": 0.0, "iterations": 1})
    first = train_ppo(
        models, load_tokenizer(tiny), prompts, settings.model_copy(update={"batch_size": 64}),
        label="scale", beta=0.1, peak_rate=1e-4, seed=1, scale=scale, precision="float32",
        fingerprint="s",
    ).metrics[0]  # fmt: skip
    assert abs(first["reward/score"]) < 4 * 2 / 64**0.5


def test_in_warm_up_the_critic_alone_moves(tiny: Path, params: Params) -> None:
    models = four(tiny)
    before = [p.detach().clone() for p in models.policy.parameters()]
    critic = [p.detach().clone() for p in models.critic.parameters()]
    run_ppo(models, tiny, params, iterations=1, critic_warmup=1)
    assert all(torch.equal(a, b) for a, b in zip(before, models.policy.parameters(), strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(critic, models.critic.parameters(), strict=True)
    )


def test_ppo_learns_the_reward_it_is_given(
    tiny: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reward for short completions: the score rises, lengths fall."""

    def scores(_model, batch):  # type: ignore[no-untyped-def]
        return 2.0 - 0.4 * batch.completion_mask.sum(-1).float()

    monkeypatch.setattr(ppo, "sequence_scores", scores)
    rows = run_ppo(
        four(tiny), tiny, params, iterations=25, batch_size=64, missing_eos_penalty=0.5
    ).metrics
    early, late = rows[:3], rows[-3:]
    assert sum(r["reward/score"] for r in late) > sum(r["reward/score"] for r in early) + 1.0
    assert sum(r["completion_tokens"] for r in late) < sum(r["completion_tokens"] for r in early)
