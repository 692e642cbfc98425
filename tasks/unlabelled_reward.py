"""Stage `unlabelled-reward`: the reward model of a share of the labels -> out/unlabelled."""

from __future__ import annotations

import argparse

from betaflow.config import load_params, unlabelled_arm
from betaflow.data.labelled import batch_units, kept_pairs
from betaflow.io import read_jsonl
from betaflow.policy.loading import load_tokenizer
from tasks._arguments import grid_arguments
from tasks._held_out import held_out_places
from tasks._main import run
from tasks.reward import train


def main(arguments: argparse.Namespace | None = None) -> None:
    """Train it as `reward` says, on the kept pairs, by the seed of the command line."""
    params = load_params()
    given = arguments or grid_arguments(__doc__, ("labelled", "seed"))
    arm = unlabelled_arm(params, "reward", given.labelled, given.seed)
    pairs = read_jsonl("out/pairs/train.jsonl")
    rows = [pairs[place] for place in kept_pairs(pairs, arm.labelled)[0]]
    # As many steps as on all pairs: a new head learns nothing in the few that few pairs make.
    everything, share = (batch_units(some, params.reward.batch_of) for some in (pairs, rows))
    epochs = params.reward.epochs * everything / share
    settings = params.reward.model_copy(update={"seed": arm.seed, "epochs": epochs})
    tokenizer = load_tokenizer("out/sft", trust_remote_code=params.model.trust_remote_code)
    held_out = read_jsonl("out/pairs/eval.jsonl")
    held_out = [held_out[place] for place in held_out_places(params, tokenizer, arm.labelled)]
    about = {"arm": arm.name, **arm.model_dump()}
    train(params, settings, rows, held_out, arm.stage, about, arm.model_dir)


if __name__ == "__main__":
    run(main, parses=True)
