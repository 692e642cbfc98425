"""Stage `unlabelled-ppo`: PPO on all prompts, by a reward model of few labels -> out/unlabelled."""

from __future__ import annotations

import argparse
from functools import partial

from betaflow.config import load_params, unlabelled_arm
from tasks._arguments import grid_arguments
from tasks._main import run
from tasks.ppo import train
from tasks.sample import samples


def main(arguments: argparse.Namespace | None = None) -> None:
    """Train and sample the policy of the share and the seed that the command line names."""
    params = load_params()
    given = arguments or grid_arguments(__doc__, ("labelled", "seed"))
    arm = unlabelled_arm(params, "ppo", given.labelled, given.seed)
    reward_model = unlabelled_arm(params, "reward", given.labelled, given.seed).model_dir
    tables = {"samples.parquet": partial(samples, params, arm.name)}
    train(params, arm, reward_model, tables)


if __name__ == "__main__":
    run(main, parses=True)
