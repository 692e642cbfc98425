"""The decoder's draws: of the right distribution, by seed alone, from any family of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from betaflow.policy.loading import load_policy
from betaflow.sampling.decode import decode, decodes, generate, uniforms

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
EOS, PAD = 2, 0
PROMPTS = [[1, 30, 31], [1, 12], [1, 20, 21, 22, 23, 24], [1, 7, 8]]


def made(kind: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)  # sharp distributions: an error in the cache shows
    return model


FAMILIES = {
    "qwen2": lambda: made(Qwen2ForCausalLM, Qwen2Config(**SIZES)),
    "mistral with a window": lambda: made(
        MistralForCausalLM, MistralConfig(**SIZES, sliding_window=4)
    ),
    "gpt2": lambda: made(
        GPT2LMHeadModel,
        GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=64),
    ),
    "gpt-neox": lambda: made(
        GPTNeoXForCausalLM,
        GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}),
    ),
}


def draw(model: Any, seeds: list[int], temperature: float = 1.0, budget: int = 20) -> Any:
    prompts = [PROMPTS[seed % len(PROMPTS)] for seed in seeds]
    return decode(model, prompts, seeds, temperature=temperature, budget=budget, eos=EOS, pad=PAD)


def alone(
    model: Any, prompt: list[int], completion: list[int], noise: Any
) -> tuple[list[int], float]:
    """The same draw without cache, batch or padding; and its log-probability."""
    ids, found, total = list(prompt), [], 0.0
    for step in range(len(completion)):
        with torch.no_grad():
            logps = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1)
        place = logps.argmax() if noise is None else (logps.exp().cumsum(-1) <= noise[step]).sum()
        found.append(int(place))
        total += float(logps[found[-1]])
        ids.append(found[-1])
    return found, total


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_draws_what_each_request_draws_alone(family: str, temperature: float) -> None:
    """Left padding, the cache, and dropping the rows that ended change nothing."""
    model = FAMILIES[family]()
    assert decodes(model)
    seeds = list(range(24))
    drawn = draw(model, seeds, temperature)
    lengths = {len(one.token_ids) for one in drawn}
    assert len(lengths) > 3 or temperature == 0  # rows do end at different times
    noise = uniforms(seeds, 20)
    for seed, one in zip(seeds, drawn, strict=True):
        mine = None if temperature == 0 else noise[seed]
        prompt = PROMPTS[seed % len(PROMPTS)]
        ids, logp = alone(model, prompt, one.token_ids, mine)
        assert one.token_ids == ids
        assert one.logprob == pytest.approx(logp, abs=1e-3)
        assert EOS not in ids[:-1]


def test_other_requests_in_the_batch_change_no_draw(tiny: Path) -> None:
    model = load_policy(tiny).eval()
    whole = draw(model, list(range(16)))
    assert [draw(model, [seed])[0].token_ids for seed in range(16)] == [w.token_ids for w in whole]


def test_state_space_models_draw_by_generate(tiny: Path) -> None:
    model = made(MambaForCausalLM, MambaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1))
    assert not decodes(model)
    options = {"temperature": 1.0, "budget": 5, "eos": EOS, "pad": PAD}
    drawn = generate(model, PROMPTS, [1, 2, 3, 4], **options)
    assert drawn == generate(model, PROMPTS, [1, 2, 3, 4], **options)
    assert all(1 <= len(one.token_ids) <= 5 for one in drawn)


def test_greedy_is_generate_s(tiny: Path) -> None:
    model = load_policy(tiny).eval()
    options = {"temperature": 0.0, "budget": 12, "eos": EOS, "pad": PAD}
    ours, theirs = (f(model, PROMPTS, [0] * 4, **options) for f in (decode, generate))
    assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_the_noise_is_uniform_and_uncorrelated_between_seeds_and_tokens() -> None:
    found = torch.from_numpy(uniforms(range(4000), 16))
    assert torch.equal(found[7], torch.from_numpy(uniforms([7], 16))[0])
    counts = torch.histc(found, bins=20, min=0, max=1)
    expected = found.numel() / 20
    assert float(((counts - expected) ** 2 / expected).sum()) < 43.8  # chi-square(19), p = 0.001
    centred = found - 0.5
    for other in (centred[1:] * centred[:-1], centred[:, 1:] * centred[:, :-1]):
        assert abs(float(other.mean())) < 4 * (1 / 12) / other.numel() ** 0.5
