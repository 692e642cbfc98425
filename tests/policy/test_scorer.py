"""Packed log-probabilities against a plain forward pass of each sequence alone, by model family."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch.utils._python_dispatch import TorchDispatchMode

from betaflow.data.tokenise import Encoded
from betaflow.errors import UserError
from betaflow.policy import attention, head, packing
from betaflow.policy.attention import NAME
from betaflow.policy.loading import load_policy, load_reward_model
from betaflow.policy.packed import pack, shared_prefix, tree_tokens
from betaflow.policy.packing import all_computed, all_sequences, require_positions
from betaflow.policy.rewards import RewardScorer
from betaflow.policy.scorer import Scorer

SIZE = {"vocab_size": 400, "max_position_embeddings": 64}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZE, **SMALL, "num_key_value_heads": 2, "intermediate_size": 64}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
GPT2 = {"vocab_size": 400, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
OFF = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

PACKED: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED)),
    "qwen2, window in one layer": lambda: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    ),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=8)),
    "mistral, window": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=8)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, **OFF, **TOKENS)),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(
        hf.GPTNeoXConfig(**SIZE, **SMALL, intermediate_size=64)
    ),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(**SIZE, **SMALL, ffn_dim=64, word_embed_proj_dim=16, dropout=0.0, **TOKENS)
    ),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**SIZE, **SMALL, intermediate_size=64)),
    "gemma2, window and caps": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**GROUPED, **GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
    ),
}
# Families that the engine must find out by itself, and the reason it gives.
PADDED: dict[str, tuple[Callable[[], Any], str]] = {
    "state space": (
        lambda: hf.MambaForCausalLM(
            hf.MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, **TOKENS)
        ),
        "",
    ),
    "positions that can't restart": (
        lambda: hf.BloomForCausalLM(
            hf.BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=2)
        ),
        "",
    ),
    "attention dropout": (
        lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(**GPT2, **{**OFF, "attn_pdrop": 0.1}, **TOKENS)
        ),
        "attention dropout",
    ),
    "attention sinks": (
        lambda: hf.GptOssForCausalLM(
            hf.GptOssConfig(
                **{**GROUPED, "num_experts_per_tok": 1}, head_dim=8, num_local_experts=2,
                sliding_window=8, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
            )
        ),
        "other hidden states",
    ),
    "scaled logits": (
        lambda: hf.CohereForCausalLM(hf.CohereConfig(**GROUPED, **TOKENS)),
        "not a projection",
    ),
}  # fmt: skip


def drawn(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, 400) for _ in range(count)]


def groups() -> list[list[Encoded]]:
    """Pairs of all lengths, and the nasty ones: unequal prompts, single tokens."""
    rng = random.Random(0)
    found = []
    for _ in range(4):
        prompt = drawn(rng, rng.randrange(3, 20))
        found.append([Encoded(prompt, drawn(rng, rng.randrange(1, 15))) for _ in range(2)])
    prompt = drawn(rng, 6)
    # A token merged across the border leaves one prompt shorter than the other.
    found.append([Encoded(prompt, drawn(rng, 3)), Encoded(prompt[:-1], drawn(rng, 3))])
    found.append([Encoded(drawn(rng, 2), drawn(rng, 3)), Encoded(drawn(rng, 2), drawn(rng, 2))])
    found.append([Encoded(drawn(rng, 1), drawn(rng, 1)), Encoded(drawn(rng, 1), drawn(rng, 1))])
    return found


def make(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # sharp distributions: errors show
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # as `load_policy` does
    return model.eval()


def alone(model: Any, sequence: Encoded) -> torch.Tensor:
    ids = torch.tensor([sequence.prompt + sequence.completion])
    logits = model(input_ids=ids, use_cache=False).logits[0]
    start = len(sequence.prompt) - 1
    distribution = torch.log_softmax(logits[start:-1].double(), -1)
    return distribution.gather(-1, torch.tensor(sequence.completion)[:, None]).sum()


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float
) -> None:
    largest = max(float(g.abs().max()) for g in theirs.values())
    for name, expected in theirs.items():
        # Relative to the parameter's own gradient; one that is zero but for rounding (a key's
        # bias) relative to the model's.
        scale = max(float(expected.abs().max()), 1e-3 * largest)
        assert float((ours[name] - expected).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("short", [0, 64])
@pytest.mark.parametrize("family", PACKED)
def test_packed_values_and_gradients_are_those_of_each_alone(
    family: str, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "SHORT", short)  # 0: prefix and branches in two calls
    model = make(PACKED[family])
    flat = [sequence for group in groups() for sequence in group]
    weights = torch.randn(len(flat), generator=torch.Generator().manual_seed(1))
    expected = torch.stack([alone(model, sequence) for sequence in flat])
    theirs = {k: g.clone() for k, g in gradients(model, (weights * expected).sum()).items()}
    scorer = Scorer(model, pad=0)
    assert scorer.packs, scorer.reason
    found = scorer(scorer.batch(groups()))
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=0)
    assert_same_gradients(gradients(model, (weights * found).sum()), theirs, 1e-4)


@pytest.mark.parametrize("family", PADDED)
def test_a_model_that_can_t_be_packed_is_found_out_and_computed_padded(family: str) -> None:
    build, reason = PADDED[family]
    model = make(build)
    before = model.config._attn_implementation
    flat = [sequence for group in groups() for sequence in group]
    with torch.no_grad():
        expected = torch.stack([alone(model, sequence) for sequence in flat])
        scorer = Scorer(model, pad=0).eval()
        assert not scorer.packs
        assert scorer.reason is not None
        assert reason in scorer.reason
        assert model.config._attn_implementation == before
        found = scorer(scorer.batch(groups()))
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=0)


def test_a_model_of_images_too_is_read_by_its_text_part(tmp_path: Path) -> None:
    text = hf.Gemma3TextConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    vision = hf.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        image_size=28, patch_size=14,
    )  # fmt: skip
    config = hf.Gemma3Config(
        text_config=text.to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4
    )
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    flat = [sequence for group in groups() for sequence in group]
    model = load_policy(tmp_path).eval()
    with torch.no_grad():
        expected = torch.stack([alone(model, sequence) for sequence in flat])
        scorer = Scorer(model, pad=0)
        assert scorer.packs, scorer.reason
        torch.testing.assert_close(
            scorer(scorer.batch(groups())), expected.float(), rtol=1e-5, atol=1e-5
        )
    assert RewardScorer(load_reward_model(tmp_path, new_head_seed=0), pad=0).packs
    with pytest.raises(UserError, match="the 64 positions of the model"):
        require_positions(model.config, 65)


def test_a_packed_model_is_the_same_as_before_for_every_other_use() -> None:
    for name in ("mistral, window", "gemma2, window and caps", "gpt2"):
        model = make(PACKED[name])
        right, left = [3] * 6 + [0] * 6, [0] * 6 + [3] * 6
        ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], right, left])
        mask = (ids > 0).long()
        with torch.no_grad():
            before = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
            unmasked = model(input_ids=ids).logits
            assert Scorer(model, pad=0).packs
            assert model.config._attn_implementation == NAME
            after = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
            torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(model(input_ids=ids).logits, unmasked, rtol=1e-4, atol=1e-5)


def test_dropout_of_any_name_is_off_in_what_is_loaded(tmp_path: Path) -> None:
    opt = hf.OPTConfig(**SIZE, **SMALL, ffn_dim=64, word_embed_proj_dim=16, **TOKENS)
    falcon = hf.FalconConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        hidden_dropout=0.1, attention_dropout=0.1,
    )  # fmt: skip
    assert opt.dropout > 0
    for model in (hf.OPTForCausalLM(opt), hf.FalconForCausalLM(falcon)):
        model.save_pretrained(tmp_path / type(model).__name__)
        policy = load_policy(tmp_path / type(model).__name__).train()
        ids = torch.tensor([[5, 6, 7, 8]])
        assert torch.equal(policy(input_ids=ids).logits, policy(input_ids=ids).logits)


def test_rotary_frequencies_that_depend_on_the_batch_limit_the_length() -> None:
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16,
        "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
    }  # fmt: skip
    config = hf.LlamaConfig(**GROUPED, rope_parameters=rope)
    scorer = Scorer(hf.LlamaForCausalLM(config).eval(), pad=0)
    scorer.batch([[Encoded([3] * 10, [4] * 6)]])
    with pytest.raises(UserError, match="17 tokens is longer than the 16"):
        scorer.batch([[Encoded([3] * 10, [4] * 7)]])


def test_a_window_that_attention_is_not_told_of_is_found_out() -> None:
    config = hf.Qwen2MoeConfig(
        **GROUPED, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=2,
        num_experts_per_tok=1, use_sliding_window=True, sliding_window=8, max_window_layers=0,
    )  # fmt: skip
    scorer = Scorer(hf.Qwen2MoeForCausalLM(config), pad=0)
    assert scorer.reason == "a sliding window that attention is not told of"


def test_the_soft_cap_is_kept_by_what_is_loaded(tmp_path: Path) -> None:
    make(PACKED["gemma2, window and caps"]).save_pretrained(tmp_path)
    model = load_policy(tmp_path).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]])
    with torch.no_grad():
        capped = model(input_ids=ids).logits
        model.set_attn_implementation("sdpa")
        assert (model(input_ids=ids).logits - capped).abs().max() > 1e-3


def test_packing_holds_no_padding_and_each_prompt_once() -> None:
    pair = [Encoded([1, 2, 3], [4, 5]), Encoded([1, 2, 3], [6])]
    merged = [Encoded([1, 2], [7, 8]), Encoded([1, 2, 9], [3])]
    batch = pack([pair, merged])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 1, 2, 7, 8, 9, 3]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2, 3, 2, 3]]
    # Where each completion token is predicted: at the prompt's last token, or the one before.
    assert batch.predictors.tolist() == [2, 3, 2, 7, 8, 10]
    assert batch.targets.tolist() == [4, 5, 6, 7, 8, 3]
    assert batch.lengths.tolist() == [2, 1, 2, 1]
    assert batch.ends.tolist() == [4, 5, 9, 11]
    assert tree_tokens(pair) + tree_tokens(merged) == batch.input_ids.numel()
    assert shared_prefix(merged) == 2


def test_an_empty_prompt_or_completion_is_counted_as_it_should() -> None:
    batch = pack([[Encoded([], [5, 6])], [Encoded([3], [])]])
    assert batch.targets.tolist() == [6]  # nothing predicts a token at position 0
    assert batch.lengths.tolist() == [1, 0]
    assert batch.ends.tolist() == [1, 2]
    scorer = Scorer(make(PACKED["llama"]), pad=0)
    assert scorer(batch)[1] == 0


@pytest.mark.parametrize("packs", [True, False])
def test_a_reward_models_scores_and_gradients_are_those_of_each_alone(
    packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packs:
        monkeypatch.setattr(packing, "why_not_packed", lambda _: "not tried")
    torch.manual_seed(0)
    model = hf.LlamaForSequenceClassification(
        hf.LlamaConfig(**GROUPED, num_labels=1, pad_token_id=0)
    )
    flat = [sequence for group in groups() for sequence in group]
    weights = torch.randn(len(flat), generator=torch.Generator().manual_seed(1))
    alone = [model(torch.tensor([s.prompt + s.completion])).logits[0, 0] for s in flat]
    expected = torch.stack(alone)
    theirs = {k: g.clone() for k, g in gradients(model, (weights * expected).sum()).items()}
    scorer = RewardScorer(model, pad=0)
    assert scorer.packs == packs
    found = scorer(scorer.batch(groups()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert_same_gradients(gradients(model, (weights * found).sum()), theirs, 1e-4)
    again = all_sequences(scorer, flat[::-1], budget=50, precision="float32")
    torch.testing.assert_close(again.flip(0), expected.detach(), rtol=1e-4, atol=1e-5)


def test_packing_order_and_accumulation_do_not_change_a_gradient() -> None:
    model = make(PACKED["llama"])
    scorer = Scorer(model, pad=0)
    many = groups()
    weights = torch.randn(len(many), 2)
    found = []
    for budget, reverse in ((1, False), (40, False), (40, True), (10_000, False)):
        order = list(range(len(many)))[:: -1 if reverse else 1]
        model.zero_grad()
        total = 0.0
        for members in scorer.bins([many[i] for i in order], budget):
            picked = [order[i] for i in members]
            logps = scorer(scorer.batch([many[i] for i in picked])).view(-1, 2)
            loss = (weights[picked] * logps).sum()
            loss.backward()
            total += loss.item()
        found.append((total, {n: p.grad.clone() for n, p in model.named_parameters()}))
    for total, gradient in found[1:]:
        assert total == pytest.approx(found[0][0], rel=1e-5)
        assert_same_gradients(gradient, found[0][1], 1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2, window and caps"])
def test_the_projection_in_chunks_is_the_projection(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(PACKED[family])
    scorer = Scorer(model, pad=0)
    batch = scorer.batch(groups())
    found = scorer(batch)
    theirs = {k: g.clone() for k, g in gradients(model, found.square().sum()).items()}
    monkeypatch.setattr(head, "CHUNK", 7 * 400)
    monkeypatch.setattr(head, "TILE", 7 * 400)
    chunked = scorer(batch)
    torch.testing.assert_close(chunked, found, rtol=1e-6, atol=0)
    assert_same_gradients(gradients(model, chunked.square().sum()), theirs, 1e-5)


class Largest(TorchDispatchMode):
    """The most rows of a tensor whose last dimension is the vocabulary, the weight's own apart."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (self.vocabulary,):
                if tensor.shape == (SMALL["hidden_size"], self.vocabulary):
                    continue  # the projection's weight, transposed
                self.rows = max(self.rows, tensor.numel() // self.vocabulary)
        return out


def test_no_tensor_of_all_tokens_by_the_vocabulary_is_ever_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head, "CHUNK", 7 * 400)
    monkeypatch.setattr(head, "TILE", 7 * 400)
    scorer = Scorer(make(PACKED["llama"]), pad=0)
    batch = scorer.batch(groups())
    assert len(batch.targets) > 21
    with Largest(400) as largest:
        scorer(batch).sum().backward()
    assert largest.rows == 7


def test_a_budget_is_kept_and_every_group_is_in_one_batch() -> None:
    for build in (PACKED["llama"], PADDED["state space"][0]):
        scorer = Scorer(make(build), pad=0)
        many = groups()
        bins = scorer.bins(many, 60)
        assert sorted(i for members in bins for i in members) == list(range(len(many)))
        for members in bins:
            batch = scorer.batch([many[i] for i in members])
            assert len(members) == 1 or batch.input_ids.numel() <= 60


def test_all_sequences_come_back_in_order_and_each_is_computed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make(PACKED["llama"])
    scorer = Scorer(model, pad=0)
    flat = [sequence for group in groups() for sequence in group]
    twice = flat[::-1] + flat
    with torch.no_grad():
        expected = torch.stack([alone(model, s) for s in twice]).float()
    seen: list[tuple[int, int]] = []
    batch = scorer.batch

    def counted(found: Any) -> Any:
        made = batch(found)
        seen.append((sum(len(group) for group in found), made.input_ids.numel()))
        return made

    monkeypatch.setattr(scorer, "batch", counted)
    for budget in (1, 50, 10_000):
        seen.clear()
        found = all_sequences(scorer, twice, budget=budget, precision="float32")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
        sequences, tokens = map(sum, zip(*seen, strict=True))
        assert sequences == len(flat)
        assert all_computed(scorer, twice) == tokens < sum(s.length for s in flat)
    scorer.packs = False
    assert all_computed(scorer, twice) == sum(s.length for s in flat)


@pytest.mark.parametrize("short", [0, 256])
def test_bfloat16_is_near_float32_and_gives_float32(
    short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "SHORT_HALF", short)
    scorer = Scorer(make(PACKED["llama"]), pad=0)
    flat = [sequence for group in groups() for sequence in group]
    exact, near = (
        all_sequences(scorer, flat, budget=200, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    assert near.dtype == torch.float32
    assert not torch.equal(near, exact)
    torch.testing.assert_close(near, exact, rtol=0.05, atol=0.1)


def test_a_sequence_longer_than_the_model_s_positions_is_refused() -> None:
    scorer = Scorer(make(PACKED["llama"]), pad=0)
    with pytest.raises(UserError, match="65 tokens is longer than the 64 positions"):
        scorer.batch([[Encoded([3] * 60, [4] * 5)]])
