"""Stage `dpo`: one arm of Direct Preference Optimization -> out/dpo/<arm>."""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd
import torch

from betaflow.config import Arm, load_params
from betaflow.errors import UserError
from betaflow.io import read_jsonl
from betaflow.policy.loading import load_policy, load_tokenizer
from betaflow.training.dpo import ReferencedPairs, train_dpo
from tasks import tracking
from tasks._arguments import arm_arguments
from tasks._inputs import encode_pairs
from tasks._main import run, set_threads
from tasks._training import finish, training_fingerprint


def referenced_pairs(tokenizer: Any, split: str) -> ReferencedPairs:
    """Pairs of a split with their cached reference log-probabilities."""
    rows = read_jsonl(f"out/pairs/{split}.jsonl")
    table = pd.read_parquet(f"out/reference/{split}.parquet")
    chosen, rejected = encode_pairs(tokenizer, rows)
    if [row["id"] for row in rows] != table["id"].tolist():
        raise UserError(
            "out/reference is not about the pairs in out/pairs; run `dvc repro reference`"
        )
    for name, sequences in (("chosen", chosen), ("rejected", rejected)):
        if table[f"{name}_tokens"].tolist() != [len(s.completion) for s in sequences]:
            raise UserError(
                "the reference was computed on other tokens than the policy is trained on; "
                "delete out/reference and run again"
            )
    return ReferencedPairs(
        chosen,
        rejected,
        torch.tensor(table["chosen_logps"].to_numpy(), dtype=torch.float32),
        torch.tensor(table["rejected_logps"].to_numpy(), dtype=torch.float32),
    )


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
    identity = training_fingerprint("dpo", {**settings, **arm.model_dump()})
    about = {"arm": arm.name, **arm.model_dump(), "fingerprint": identity, "settings": settings}
    with tracking.training_run(params, about) as log:
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
        finish(arm.model_dir, policy, tokenizer, trained, figures, about, log)


if __name__ == "__main__":
    run(main)
