"""FLOPs of a forward pass, by hand."""

from __future__ import annotations

from pathlib import Path

from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from betaflow.policy.flops import forward_flops
from betaflow.policy.loading import load_policy, load_reward_model

# Query, key, value, output; gate, up, down; two layers.
LAYERS = 2 * (4 * 64 * 64 + 3 * 64 * 192)


def test_each_weight_of_a_matrix_product_counts_twice(tiny: Path) -> None:
    vocabulary = load_policy(tiny).config.vocab_size
    assert forward_flops(load_policy(tiny)) == 2 * (LAYERS + vocabulary * 64)  # tied: projected to
    assert forward_flops(load_reward_model(tiny, new_head_seed=0)) == 2 * (LAYERS + 64)


def test_an_embedding_of_its_own_is_only_looked_up() -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    assert forward_flops(LlamaForCausalLM(config)) == 2 * (LAYERS + 50 * 64)


def test_learned_positions_are_only_looked_up() -> None:
    config = GPT2Config(vocab_size=50, n_embd=64, n_layer=2, n_head=2, n_positions=1000)
    layers = 2 * (4 * 64 * 64 + 2 * 64 * 256)  # tied, so the tokens' table is projected to
    assert forward_flops(GPT2LMHeadModel(config)) == 2 * (layers + 50 * 64)
