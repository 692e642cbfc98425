"""What keeps PPO from the closed-form optimum: one setting changed at a time.

    .venv/bin/python -m benchmarks.ppo_limits [--out out/ppo_limits] [--seeds 0 1] [--cases base]

Run it in a workspace of the embedded world whose `out/sft`, `out/reward`, `out/data` and
`out/optimum` are made, such as that of presets/frontier.yaml. Every case differs from the first
(`base`) in what its name says, and is told by its share of the optimum's gain at its own KL, over
the prompts of `out/optimum`.

It writes `limits.json` and `limits.png`. A case that `limits.json` has is not run again, so a run
that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from benchmarks._limits import Workspace, command_line, label, run_cases
from betaflow.config import Params, PPOTraining
from betaflow.data.tokenise import Encoded
from betaflow.policy.flops import forward_flops
from betaflow.policy.loading import load_policy, load_reward_model
from betaflow.policy.rewards import all_sequence_scores
from betaflow.sampling.hf_engine import HFEngine
from betaflow.training.ppo import Models, Reward, reference_scale, train_ppo

BASE = {
    "iterations": 60,
    "batch_size": 96,
    "micro_batch_size": 24,
    "epochs": 2,
    "minibatches": 1,
    "reuse_scoring": False,
    "critic_warmup": 3,
    "teach_states": False,
    "kl_horizon": 1000,
    "lam": 0.95,
    "schedule": "linear",
    "engine": "hf",
}

PRESET = {"minibatches": 4, "kl_horizon": 500}  # what presets/frontier.yaml has besides its rate


class Case(NamedTuple):
    """How a policy is trained; `changes` are of `BASE`.

    `beta` is the KL's coefficient, or where it starts to be adapted to `target_kl` (0: it stays).
    """

    name: str
    changes: Mapping[str, Any] = MappingProxyType({})
    target_kl: float = 2.0
    rate: float = 5e-4
    beta: float = 0.2


CASES = (
    Case("base"),
    Case("4 mini-batches", {"minibatches": 4}),
    Case("4 mini-batches, horizon 300", {"minibatches": 4, "kl_horizon": 300}),
    Case("horizon 300", {"kl_horizon": 300}),
    Case("4 epochs", {"epochs": 4}),
    Case("rate 2.5e-4", rate=2.5e-4),
    Case("rate 1e-3", rate=1e-3),
    Case("4 mini-batches, rate 2.5e-4", {"minibatches": 4}, rate=2.5e-4),
    Case("4 mini-batches, rate 1.2e-4", {"minibatches": 4}, rate=1.2e-4),
    Case(
        "4 mini-batches, rate 2.5e-4, horizon 500, target 1",
        PRESET,
        rate=2.5e-4,
        target_kl=1.0,
    ),
    Case("preset", PRESET, rate=2.5e-4),
    Case("preset, coefficient 0.55", PRESET, rate=2.5e-4, target_kl=0, beta=0.55),
    Case("preset, coefficient 0.3", PRESET, rate=2.5e-4, target_kl=0, beta=0.3),
    Case("preset, target 1, from 0.55", PRESET, rate=2.5e-4, target_kl=1.0, beta=0.55),
    Case(
        "preset, states taught in 20 iterations",
        {**PRESET, "teach_states": True, "critic_warmup": 20},
        rate=2.5e-4,
    ),
    Case("lambda 1", {"lam": 1.0}),
    Case("lambda 0.9", {"lam": 0.9}),
    Case("10 iterations of critic warm-up", {"critic_warmup": 10}),
    Case("120 rollouts of 48 episodes", {"iterations": 120, "batch_size": 48}),
    Case("twice the rollouts", {"iterations": 120}),
)


class Trial(Workspace):
    """A workspace with a reward model, and how PPO trains in it."""

    def __init__(self, params: Params, prompts: int) -> None:
        super().__init__(params, prompts)
        self.reward_model = load_reward_model("out/reward").eval()

    def train(self, case: Case, seed: int) -> Any:
        """The policy that PPO makes in this case."""
        settings = PPOTraining(**{**self.params.ppo.training.model_dump(), **BASE, **case.changes})
        models = Models(load_policy("out/sft"), self.reference, load_reward_model("out/reward"))
        prompts = [row["ids"] for row in self.prompts]

        def score(episodes: list[Encoded]) -> torch.Tensor:
            return all_sequence_scores(
                self.reward_model,
                episodes,
                pad=self.pad,
                batch_size=settings.micro_batch_size,
                precision="float32",
            )

        drawer = HFEngine(self.reference, self.tokenizer, settings.batch_size)
        scale = reference_scale(score, drawer, prompts, settings, seed=seed)
        train_ppo(
            models,
            Reward(score, scale, forward_flops(self.reward_model)),
            scale,
            HFEngine(models.policy, self.tokenizer, settings.batch_size),
            prompts,
            settings,
            pad=self.pad,
            label=label("ppo-limits", case.name, seed),
            beta=case.beta,
            target_kl=case.target_kl,
            peak_rate=case.rate,
            seed=seed,
            precision="float32",
            fingerprint=repr((case, seed, len(prompts), scale)),
        )
        return models.policy


def main() -> None:
    """Run the cases that are missing, and tell all."""
    parser = command_line(__doc__, "out/ppo_limits")
    run_cases(parser, CASES, lambda params, given: Trial(params, given.prompts))


if __name__ == "__main__":
    main()
