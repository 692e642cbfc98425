"""Looks at a policy while it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from betaflow.data.tokenise import Encoded
from betaflow.evaluation.curve import Probe, evaluations, means, probe
from betaflow.evaluation.kl import sequence_kl
from betaflow.policy.loading import load_policy, load_tokenizer
from betaflow.sampling.hf_engine import HFEngine

PROMPTS = [{"id": f"p{n}", "text": f"prompt {n}", "ids": [1, 30 + n]} for n in range(5)]


def test_looks_are_evenly_spaced_and_the_last_is_at_the_end() -> None:
    assert evaluations(100, 4) == {25, 50, 75, 100}
    assert evaluations(10, 3) == {4, 7, 10}
    assert evaluations(3, 10) == {1, 2, 3}
    assert evaluations(10, 0) == set()


def test_a_look_has_the_draws_kl_and_reward_and_leaves_training_alone(tiny: Path) -> None:
    policy, reference = load_policy(tiny), load_policy(tiny).eval()
    with torch.no_grad():
        next(policy.parameters()).mul_(1.05)
    policy.eval()
    engine = HFEngine(policy, load_tokenizer(tiny), 8)
    asked = Probe(PROMPTS, 3, 9, 4, "float32", lambda text: float(len(text)))
    state = torch.get_rng_state()
    frame = probe(policy, reference, engine, asked)
    assert torch.equal(torch.get_rng_state(), state)
    assert frame["prompt_id"].tolist() == [f"p{n}" for n in range(5) for _ in range(3)]
    assert frame["draw"].tolist() == [0, 1, 2] * 5
    sequences = [Encoded([1, 30 + n // 3], list(ids)) for n, ids in enumerate(frame["token_ids"])]
    exact = sequence_kl(policy, reference, sequences, pad=0, batch_size=2, precision="float32")
    assert frame["kl"].tolist() == pytest.approx(exact.kl.tolist(), abs=1e-4)
    ratios = (exact.policy_logps - exact.reference_logps).tolist()
    assert frame["log_ratio"].tolist() == pytest.approx(ratios, abs=1e-4)
    texts = [f"prompt {n // 3}{c}" for n, c in enumerate(frame["completion"])]
    assert frame["gold_reward"].tolist() == [float(len(text)) for text in texts]
    assert (frame["entropy"] > 0).all()
    # The same requests again: the same rows.
    assert probe(policy, reference, engine, asked).equals(frame)
    found = means(frame)
    assert found["curve/kl"] == pytest.approx(frame["kl"].mean())
    assert set(found) == {
        f"curve/{key}"
        for key in ("kl", "log_ratio", "entropy", "completion_tokens", "finished", "gold_reward")
    }


def test_without_a_known_reward_there_is_none(tiny: Path) -> None:
    policy = load_policy(tiny).eval()
    asked = Probe(PROMPTS, 1, 5, 4, "float32", None)
    frame = probe(policy, policy, HFEngine(policy, load_tokenizer(tiny), 8), asked)
    assert "gold_reward" not in frame
    assert frame["kl"].tolist() == [0.0] * 5
