"""Worker: train PPO on the job's prompts with betaflow, and time it. `ppo_throughput.py` starts it.

The working folder is a temporary one: the trainer writes its checkpoints below it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from _measure import PRECISIONS, device_name, read_job, read_jsonl, resident_bytes, versions
from _rollouts import Drawn, Watch, drawn_figures

from betaflow.config import PPOTraining
from betaflow.data.tokenise import Encoded
from betaflow.policy.loading import load_policy, load_reward_model, load_tokenizer
from betaflow.policy.rewards import all_sequence_scores
from betaflow.sampling.engine import Completion, Request
from betaflow.sampling.hf_engine import HFEngine
from betaflow.training.ppo import Models, Reward, Scale, train_ppo

UNIT = Scale(0.0, 1.0)  # TRL takes scores as they are, and so does this


class Recording(HFEngine):
    """The engine that rolls out, with a note of what it drew."""

    def watched_by(self, watch: Watch) -> Recording:
        self.watch, self.drawn = watch, list[Drawn]()
        return self

    def generate(self, requests: list[Request]) -> list[Completion]:
        found = super().generate(requests)
        self.watch.ends("rollout")
        both = zip(requests, found, strict=True)
        self.drawn.append([(request.prompt_ids, one.token_ids) for request, one in both])
        return found


def train(job: dict[str, Any], prompts: list[list[int]]) -> dict[str, Any]:
    settings = PPOTraining(**{**SETTINGS, **of_job(job), **job["betaflow_set"]})
    precision = PRECISIONS[job["precision"]]
    watch = Watch("betaflow", job["rollouts"])
    tokenizer = load_tokenizer(job["model"])
    pad = tokenizer.pad_token_id
    before = resident_bytes()
    models = Models(
        policy=load_policy(job["model"]),
        reference=load_policy(job["model"]).eval(),
        critic=load_reward_model(job["reward"]),
    )
    reward_model = load_reward_model(job["reward"]).eval()
    engine = Recording(models.policy, tokenizer, settings.batch_size).watched_by(watch)

    def score(episodes: list[Encoded]) -> torch.Tensor:
        size = settings.micro_batch_size
        found = all_sequence_scores(
            reward_model, episodes, pad=pad, batch_size=size, precision=precision
        )
        watch.ends("scoring")
        return found

    watch.begin()
    trained, _ = train_ppo(
        models,
        Reward(score, UNIT),
        UNIT,
        engine,
        prompts,
        settings,
        pad=pad,
        label="benchmark",
        beta=job["kl_coefficient"],
        target_kl=0,
        peak_rate=job["learning_rate"],
        seed=job["seed"],
        precision=precision,
        fingerprint="benchmark",
        on_step=lambda _: watch.iteration_ends(),
    )
    learnt = (models.policy, models.critic)
    return {
        **watch.figures(),
        **drawn_figures(engine.drawn, tokenizer.eos_token_id),
        "scores": [row["reward/score"] for row in trained.metrics],
        "kl": [row["reward/kl"] for row in trained.metrics],
        "parameters": sum(p.numel() for model in learnt for p in model.parameters()),
        "before_model_bytes": before,
        "settings": {**settings.model_dump(), "precision": precision},
    }


def of_job(job: dict[str, Any]) -> dict[str, Any]:
    """What both libraries are told alike."""
    names = ("batch_size", "epochs", "minibatches", "max_new_tokens", "missing_eos_penalty")
    return {
        **{name: job[name] for name in names},
        "iterations": job["rollouts"],
        "micro_batch_size": job["micro_batch_size"],
        "threads": job["threads"],
        "reuse_scoring": job["minibatches"] == 1,
    }


# As TRL's worker: PPOConfig's constants, AdamW at a constant rate. TRL clips no gradients; here
# the norm is computed, and never reaches the limit.
SETTINGS: dict[str, Any] = {
    "optimizer": "adamw",
    "schedule": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "max_grad_norm": 1e9,
    "clip": 0.2,
    "value_clip": 0.2,
    "value_coefficient": 0.1,
    "gamma": 1.0,
    "lam": 0.95,
    "critic_warmup": 0,
    "teach_states": False,
    "whiten_rewards": False,
    "kl_horizon": 10_000,
    "engine": "hf",
    "logprob_tolerance": 1e-3,
    "checkpoint_seconds": 1e9,
}


def main() -> None:
    job = read_job()
    result = train(job, [row["ids"] for row in read_jsonl(job["prompts"])])
    result |= {"device": device_name(), "versions": versions("torch", "transformers")}
    Path(job["out"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
