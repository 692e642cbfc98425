"""Stage `dpo`: one arm of Direct Preference Optimization -> out/dpo/<arm>."""

from __future__ import annotations

import argparse

from betaflow.config import Arm, load_params
from betaflow.io import atomic_directory
from betaflow.policy.loading import load_policy, load_tokenizer, save_model
from betaflow.training import checkpoints
from betaflow.training.dpo import train_dpo
from tasks import tracking
from tasks._arguments import arm_arguments
from tasks._inputs import referenced_pairs, training_fingerprint, write_timing, write_training
from tasks._main import run, set_threads


def main(arguments: argparse.Namespace | None = None) -> None:
    """Train the arm that the command line names."""
    params = load_params()
    given = arguments or arm_arguments(__doc__)
    arm = Arm(method="dpo", beta=given.beta, learning_rate=given.learning_rate, seed=given.seed)
    set_threads(params.dpo.training.threads)
    trust = params.model.trust_remote_code
    policy = load_policy("out/sft", trust_remote_code=trust)
    tokenizer = load_tokenizer("out/sft", trust_remote_code=trust)
    pairs, held_out = (referenced_pairs(tokenizer, split) for split in ("train", "eval"))
    settings = {"training": params.dpo.training.model_dump(), "precision": params.model.precision}
    identity = training_fingerprint(
        "dpo",
        ["out/sft", "out/pairs", "out/reference", "betaflow/objectives/dpo.py"],
        {**settings, **arm.model_dump()},
    )
    about = {"arm": arm.name, **arm.model_dump(), "fingerprint": identity}
    with tracking.training_run(params, about, settings) as log:
        trained, figures = train_dpo(
            policy,
            pairs,
            held_out,
            params.dpo.training,
            label=arm.name,
            beta=float(given.beta),
            peak_rate=float(given.learning_rate),
            seed=given.seed,
            pad=tokenizer.pad_token_id,
            precision=params.model.precision,
            fingerprint=identity,
            on_step=log.step,
        )
        with atomic_directory(arm.model_dir) as folder:
            save_model(policy, tokenizer, folder)
            write_training(folder, trained, figures, about)
        write_timing(arm.name, trained.seconds)
        log.finish(figures)
    checkpoints.clear(arm.name)
    print(", ".join(f"{key} {value:.4g}" for key, value in figures.items()))


if __name__ == "__main__":
    run(main)
