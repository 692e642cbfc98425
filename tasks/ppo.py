"""Stage `ppo`: one arm of RLHF-PPO, on the reward model or the gold reward -> out/ppo/<arm>."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from betaflow.config import Arm, Params, PPOTraining, UnlabelledArm, load_params
from betaflow.data.tokenise import Encoded
from betaflow.errors import UserError
from betaflow.policy.flops import forward_flops
from betaflow.policy.loading import load_policy, load_reward_model, load_tokenizer
from betaflow.policy.rewards import all_sequence_scores
from betaflow.sampling.engine import open_engine
from betaflow.sampling.hf_engine import HFEngine
from betaflow.sampling.parity import release
from betaflow.training.ppo import Models, Reward, Score, reference_scale, train_ppo
from tasks import tracking
from tasks._arguments import grid_arguments
from tasks._curve import about_looks, collect, curve_probe
from tasks._inputs import stage_fingerprint, training_prompts
from tasks._main import run, set_threads
from tasks._training import finish

if TYPE_CHECKING:
    from tasks._training import Table

GRID = ["method", "beta", "target_kl", "learning_rate", "seed"]


def main(arguments: argparse.Namespace | None = None) -> None:
    """Train the arm that the command line names, on labelled and unlabelled prompts."""
    params = load_params()
    given = arguments or grid_arguments(__doc__, GRID, ["ppo", "ppo_gt"])
    train(params, Arm(**{name: getattr(given, name) for name in GRID}), Path("out/reward"))


def train(
    params: Params,
    arm: Arm | UnlabelledArm,
    reward_model: Path,
    tables: Mapping[str, Table] | None = None,
) -> None:
    """Train an arm on labelled and unlabelled prompts, and write it to its folder.

    Args:
        reward_model: its folder.
        tables: as in `finish`, written beside the model.
    """
    assert arm.seed is not None and arm.learning_rate is not None
    assert arm.beta is not None and arm.target_kl is not None
    settings, trust = params.ppo.training, params.model.trust_remote_code
    set_threads(settings.threads)
    tokenizer = load_tokenizer("out/sft", trust_remote_code=trust)
    models = Models(
        policy=load_policy("out/sft", trust_remote_code=trust),
        reference=load_policy("out/sft", trust_remote_code=trust).eval(),
        critic=load_reward_model(reward_model, trust_remote_code=trust),
    )
    longest = params.pairs.max_prompt_tokens
    prompts = [row["ids"] for row in training_prompts(tokenizer, longest)]
    if not prompts:
        raise UserError("there is no prompt of at most pairs.max_prompt_tokens tokens in out/data")
    kept = {
        "training": settings.model_dump(),
        **about_looks(params),
        "precision": params.model.precision,
    }
    point = arm.model_dump()
    identity = stage_fingerprint(arm.stage, {**kept, **point, "longest": longest}, point)
    about = {"arm": arm.name, **point, "fingerprint": identity, "settings": kept}
    model_score, cost = _model_score(params, tokenizer, reward_model)
    score = model_score if arm.method == "ppo" else _gold_score(tokenizer)
    drawer = HFEngine(models.reference, tokenizer, _together(settings))
    critic_scale = reference_scale(model_score, drawer, prompts, settings, seed=arm.seed)
    scale = critic_scale
    if score is not model_score:
        scale = reference_scale(score, drawer, prompts, settings, seed=arm.seed)
    engine, hand_over = _rollouts(params, models, tokenizer)
    with tracking.training_run(params, about) as log:
        trained, phases = train_ppo(
            models,
            Reward(score, scale, cost if arm.method == "ppo" else 0.0),
            critic_scale,
            engine,
            prompts,
            settings,
            pad=tokenizer.pad_token_id,
            label=arm.name,
            beta=float(arm.beta),
            target_kl=float(arm.target_kl),
            peak_rate=float(arm.learning_rate),
            seed=arm.seed,
            precision=params.model.precision,
            fingerprint=identity,
            on_step=log.step,
            hand_over=hand_over,
            probe=curve_probe(
                params, arm.name, models.policy, models.policy, tokenizer, settings.iterations
            ),
        )
        last = trained.metrics[-1]
        figures = {f"last/{key}": last[key] for key in ("reward/score", "kl", "objective")}
        release(engine)
        looks = {"curve.parquet": collect(arm.name, trained.metrics)}
        finish(
            arm.model_dir, models.policy, tokenizer, trained, figures, about, log,
            phases=phases, tables={**looks, **(tables or {})},
        )  # fmt: skip
    print("seconds an iteration: " + ", ".join(f"{k} {v:.3f}" for k, v in phases.items()))


def _model_score(params: Params, tokenizer: Any, folder: Path) -> tuple[Score, float]:
    """The reward model's score, and its forward FLOPs a token."""
    model = load_reward_model(folder, trust_remote_code=params.model.trust_remote_code).eval()

    def score(episodes: list[Encoded]) -> torch.Tensor:
        return all_sequence_scores(
            model,
            episodes,
            pad=tokenizer.pad_token_id,
            batch_size=params.ppo.training.micro_batch_size,
            precision=params.model.precision,
        )

    return score, forward_flops(model)


def _gold_score(tokenizer: Any) -> Score:
    """The embedded world's exact reward of the whole text."""
    from betaflow.worlds.sentiment import gold_reward

    def score(episodes: list[Encoded]) -> torch.Tensor:
        texts = tokenizer.batch_decode(
            [episode.prompt + episode.completion for episode in episodes], skip_special_tokens=True
        )
        return torch.tensor([gold_reward(text) for text in texts])

    return score


def _together(settings: PPOTraining) -> int:
    """Episodes that the `hf` engine draws at once, whose keys and values are all in memory."""
    return min(settings.batch_size, 4 * settings.micro_batch_size)


def _rollouts(params: Params, models: Models, tokenizer: Any) -> tuple[Any, Any]:
    """The engine that draws the episodes, and what gives it the policy's weights."""
    settings = params.ppo.training
    if settings.engine == "hf":
        return HFEngine(models.policy, tokenizer, _together(settings)), None
    from betaflow.sampling.handover import hand_over

    engine = open_engine(
        "vllm",
        "out/sft",
        threads=settings.threads,
        precision=params.model.precision,
        trust_remote_code=params.model.trust_remote_code,
    )

    def give(sequences: list[Encoded]) -> None:
        hand_over(engine, models.policy, sequences, tolerance=settings.logprob_tolerance)

    return engine, give


if __name__ == "__main__":
    run(main, parses=True)
