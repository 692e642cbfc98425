"""vLLM under training: each kind of weight arrives, and weights that do not are noticed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, Qwen2Config
from transformers.models.auto import AutoModelForCausalLM

from betaflow.data.tokenise import Encoded
from betaflow.errors import UserError
from betaflow.policy.loading import load_policy, load_tokenizer, save_model
from betaflow.sampling.handover import hand_over
from betaflow.sampling.hf_engine import HFEngine

TRIAL = Path(__file__).with_name("handover_trial.py")
SEQUENCES = [Encoded([1, 30, 31], [40, 41, 42]), Encoded([1, 40], [50, 2])]
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}
FAMILIES: dict[str, Any] = {
    "untied-llama": lambda **ids: LlamaConfig(**SIZES, tie_word_embeddings=False, **ids),
    "qwen2": lambda **ids: Qwen2Config(**SIZES, tie_word_embeddings=True, **ids),
    "gpt2": lambda **ids: GPT2Config(n_embd=64, n_layer=1, n_head=2, n_positions=128, **ids),
}
MODELS = ["tied-llama", *FAMILIES]


@pytest.fixture(scope="module")
def found(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("handover")
    shutil.copytree(tiny, folder / MODELS[0])
    tokenizer = load_tokenizer(tiny)
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    for name, config in FAMILIES.items():
        model = AutoModelForCausalLM.from_config(config(**ids, bos_token_id=1, pad_token_id=0))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(6)  # sharp next-token distributions: errors show
        save_model(model, tokenizer, folder / name)
    done = subprocess.run(
        [sys.executable, TRIAL, *(str(folder / name) for name in MODELS)],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("RESULT"))


@pytest.mark.parametrize("model", MODELS)
def test_each_weight_arrives_and_one_that_did_not_is_noticed(
    found: dict[str, Any], model: str
) -> None:
    gaps = found[model]["gaps"]
    (loaded,) = gaps.pop("as loaded")
    assert loaded is not None and loaded < 1e-5
    assert any("embed" in name or "wte" in name for name in gaps)
    for name, (forgotten, handed_over) in gaps.items():
        assert forgotten is None, name
        assert handed_over is not None and handed_over < 1e-5, name


@pytest.mark.parametrize("model", MODELS)
def test_completions_are_drawn_from_the_policy_as_it_is_now(
    found: dict[str, Any], model: str
) -> None:
    drawn = found[model]
    assert drawn["now"] != drawn["before"]
    assert drawn["logprobs"] == pytest.approx(drawn["expected"], abs=1e-3)
    half = len(drawn["greedy"]) // 2  # the first half at temperature 0
    assert all(drawn["greedy"][:half]) and not all(drawn["greedy"][half:])


def test_tokens_come_as_often_as_the_policy_says(found: dict[str, Any]) -> None:
    drawn = found[MODELS[0]]
    counts, chances = torch.tensor(drawn["counts"]), torch.tensor(drawn["chances"])
    total = int(counts.sum())
    assert total == 2048
    common = chances * total > 20
    spread = (total * chances * (1 - chances)).sqrt()
    assert common.sum() > 3
    assert bool(((counts - total * chances).abs() < 5 * spread)[common].all())


@pytest.mark.parametrize("model", MODELS)
def test_the_trainer_s_random_state_is_left_alone(found: dict[str, Any], model: str) -> None:
    assert found[model]["undisturbed"]


def test_an_engine_without_weights_of_its_own_draws_from_the_policy(tiny: Path) -> None:
    policy = load_policy(tiny)
    engine = HFEngine(policy, load_tokenizer(tiny), 4)
    with torch.no_grad():
        policy.get_input_embeddings().weight.mul_(1.1)
    assert hand_over(engine, policy, SEQUENCES, tolerance=1e-5) < 1e-5


def test_an_engine_of_another_model_is_noticed(tiny: Path) -> None:
    policy = load_policy(tiny)
    engine = HFEngine(load_policy(tiny), load_tokenizer(tiny), 4)
    with torch.no_grad():
        policy.get_input_embeddings().weight.mul_(1.1)
    with pytest.raises(UserError, match="hf after it was given the policy's weights"):
        hand_over(engine, policy, SEQUENCES, tolerance=1e-3)


def test_a_handover_with_nothing_to_compare_on_is_refused(tiny: Path) -> None:
    policy = load_policy(tiny)
    with pytest.raises(UserError, match="no sequence"):
        hand_over(HFEngine(policy, load_tokenizer(tiny), 4), policy, [], tolerance=1e-3)
