"""Token statistics, KL and scores of padded batches, and how models are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from betaflow.data.tokenise import Encoded, collate
from betaflow.errors import UserError
from betaflow.evaluation.kl import batch_kl, sequence_kl
from betaflow.policy import head, logps
from betaflow.policy.loading import autocast, load_policy, load_reward_model, load_tokenizer
from betaflow.policy.logps import sequence_logps, token_statistics
from betaflow.policy.rewards import all_sequence_scores, token_values

SEQUENCES = [
    Encoded([1, 30, 31], [40, 41, 42, 2]),
    Encoded([1], [50, 2]),
    Encoded([1, 30, 31, 32, 33, 34], [60]),
]


def test_token_statistics_add_up(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the chunk: of one position, of a few, of all."""
    model, other = load_policy(tiny).eval(), load_policy(tiny).eval()
    with torch.no_grad():
        next(other.parameters()).mul_(1.1)
    batch = collate(SEQUENCES, pad=0)
    mask = batch.completion_mask[:, 1:]
    whole = token_statistics(model, other, batch)
    for size in (1, 3):
        for module in (head, logps):
            monkeypatch.setattr(module, "CHUNK", size * model.config.vocab_size)
        torch.testing.assert_close(token_statistics(model, other, batch), whole)
    torch.testing.assert_close(whole.logps.sum(-1), sequence_logps(model, batch))
    torch.testing.assert_close(whole.reference_logps.sum(-1), sequence_logps(other, batch))
    assert (whole.entropy[mask] > 0).all()
    assert (whole.kl[mask] > 0).all()
    assert all((value[~mask] == 0).all() for value in whole)


def test_statistics_have_a_gradient_where_they_are_asked_for_one(tiny: Path) -> None:
    """Of the log-probabilities alone; what only looks at a policy keeps no graph."""
    model, other = load_policy(tiny), load_policy(tiny)
    batch = collate(SEQUENCES, pad=0)
    assert not any(value.requires_grad for value in token_statistics(model, other, batch))
    found = token_statistics(model, other, batch, differentiable=True)
    assert [value.requires_grad for value in found] == [True, False, False, False]
    weights = list(model.parameters())
    ours = torch.autograd.grad(found.logps.square().sum(), weights)
    theirs = torch.autograd.grad(logps.token_logps(model, batch).square().sum(), weights)
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_a_projection_is_found_under_autocast_too() -> None:
    """Gemma 2 caps its logits in bfloat16 there."""
    config = Gemma2Config(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, final_logit_softcapping=3.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config)
    with autocast("bfloat16"):
        assert head.head_of(model) is not None


def test_statistics_in_bfloat16_are_summed_in_float32(tiny: Path) -> None:
    """What autocast would round is the models' work, and not the sums over the vocabulary."""
    model, other = load_policy(tiny).eval(), load_policy(tiny).eval()
    with torch.no_grad():
        next(other.parameters()).mul_(1.1)
    batch = collate(SEQUENCES, pad=0)
    whole = token_statistics(model, other, batch)
    with torch.no_grad(), autocast("bfloat16"):
        found = token_statistics(model, other, batch)
    assert {value.dtype for value in found} == {torch.float32}
    for ours, theirs in zip(found, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=2e-2)


def test_kl_is_zero_against_itself_and_the_full_sum_against_another(tiny: Path) -> None:
    policy, reference = load_policy(tiny).eval(), load_policy(tiny).eval()
    assert torch.all(batch_kl(policy, reference, collate(SEQUENCES, pad=0)).kl == 0)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    found = sequence_kl(policy, reference, SEQUENCES, pad=0, batch_size=2, precision="float32")
    assert (found.kl > 0).all()
    sequence = SEQUENCES[0]
    ids = torch.tensor([sequence.prompt + sequence.completion])
    with torch.no_grad():
        ours, theirs = (torch.log_softmax(m(ids).logits[0], -1) for m in (policy, reference))
    by_hand = (ours.exp() * (ours - theirs)).sum(-1)[len(sequence.prompt) - 1 : -1].sum()
    torch.testing.assert_close(found.kl[0], by_hand, rtol=1e-4, atol=1e-5)


def test_scores_in_bfloat16_have_their_head_in_float32(tiny: Path) -> None:
    """A score is a number of about 2: bfloat16 would round it to steps of 1/64."""
    model = load_reward_model(tiny, new_head_seed=0).eval()
    batch = collate(SEQUENCES, pad=0)
    with torch.no_grad(), autocast("bfloat16"):
        found = token_values(model, batch)
        hidden = model.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state
    torch.testing.assert_close(found, (hidden.float() @ model.score.weight.T).squeeze(-1))
    assert not torch.equal(found, found.bfloat16().float())


def test_sampled_kl_agrees_with_the_mean_log_ratio(tiny: Path) -> None:
    """Both estimate the sequence KL on the policy's own samples; the exact one varies less."""
    from betaflow.sampling.engine import Request
    from betaflow.sampling.hf_engine import HFEngine

    policy, reference = load_policy(tiny).eval(), load_policy(tiny).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    engine = HFEngine(policy, load_tokenizer(tiny), 256)
    drawn = engine.generate([Request([1, 30], 1.0, seed, 6) for seed in range(768)])
    sequences = [Encoded([1, 30], completion.token_ids) for completion in drawn]
    found = sequence_kl(policy, reference, sequences, pad=0, batch_size=256, precision="float32")
    ratio = found.policy_logps - found.reference_logps
    gap = float(found.kl.mean() - ratio.mean())
    assert abs(gap) < 4 * float((found.kl - ratio).std()) / len(drawn) ** 0.5
    assert found.kl.std() < ratio.std()


def test_the_score_is_read_at_the_last_real_token_even_if_pad_is_eos(tiny: Path) -> None:
    model = load_reward_model(tiny, new_head_seed=0).eval()
    found = all_sequence_scores(model, SEQUENCES, pad=2, batch_size=3, precision="float32")
    for value, sequence in zip(found, SEQUENCES, strict=True):
        alone = token_values(model, collate([sequence], pad=2))[0, -1]
        torch.testing.assert_close(value, alone.detach(), rtol=1e-4, atol=1e-5)


def test_a_new_reward_head_is_drawn_as_said_and_reproducibly(tiny: Path) -> None:
    first, again = (load_reward_model(tiny, new_head_seed=3).score.weight for _ in range(2))
    assert torch.equal(first, again)
    assert 0.5 < float(first.detach().std() * (64 + 1) ** 0.5) < 1.5


def test_loading_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make align"):
        load_policy("out/nothing-here")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.base"):
        load_policy(tmp_path)


def test_dropout_is_off_after_loading(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    assert config.resid_pdrop > 0
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = load_policy(tmp_path).train()
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(ids).logits, model(ids).logits)
