"""Stage `ppo`: one arm of RLHF-PPO against the reward model -> out/ppo/<arm>."""

from __future__ import annotations

import argparse

from betaflow.config import Arm, load_params
from betaflow.errors import UserError
from betaflow.policy.loading import load_policy, load_reward_model, load_tokenizer
from betaflow.training.ppo import Models, reference_scale, train_ppo
from tasks import tracking
from tasks._arguments import arm_arguments
from tasks._inputs import prompt_rows
from tasks._main import run, set_threads
from tasks._training import finish, training_fingerprint


def main(arguments: argparse.Namespace | None = None) -> None:
    """Train the arm that the command line names, on labelled and unlabelled prompts."""
    params = load_params()
    given = arguments or arm_arguments(__doc__)
    arm = Arm(method="ppo", beta=given.beta, learning_rate=given.learning_rate, seed=given.seed)
    set_threads(params.ppo.training.threads)
    trust = params.model.trust_remote_code
    tokenizer = load_tokenizer("out/sft", trust_remote_code=trust)
    models = Models(
        policy=load_policy("out/sft", trust_remote_code=trust),
        reference=load_policy("out/sft", trust_remote_code=trust).eval(),
        critic=load_reward_model("out/reward", trust_remote_code=trust),
        reward=load_reward_model("out/reward", trust_remote_code=trust).eval(),
    )
    names = ("prompts_train", "prompts_unlabelled")
    longest = params.pairs.max_prompt_tokens
    prompts = [row["ids"] for name in names for row in prompt_rows(tokenizer, name, longest)]
    if not prompts:
        raise UserError("there is no prompt of at most pairs.max_prompt_tokens tokens in out/data")
    settings = {"training": params.ppo.training.model_dump(), "precision": params.model.precision}
    identity = training_fingerprint("ppo", {**settings, **arm.model_dump(), "longest": longest})
    scale = reference_scale(
        models,
        tokenizer,
        prompts,
        params.ppo.training,
        seed=given.seed,
        precision=params.model.precision,
    )
    about = {"arm": arm.name, **arm.model_dump(), "fingerprint": identity, "settings": settings}
    with tracking.training_run(params, about) as log:
        trained = train_ppo(
            models,
            tokenizer,
            prompts,
            params.ppo.training,
            label=arm.name,
            beta=float(given.beta),
            peak_rate=float(given.learning_rate),
            seed=given.seed,
            scale=scale,
            precision=params.model.precision,
            fingerprint=identity,
            on_step=log.step,
        )
        last = trained.metrics[-1]
        figures = {f"last/{key}": last[key] for key in ("reward/score", "reward/kl", "objective")}
        finish(arm.model_dir, models.policy, tokenizer, trained, figures, about, log)


if __name__ == "__main__":
    run(main)
