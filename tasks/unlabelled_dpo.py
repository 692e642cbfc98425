"""Stages `unlabelled-dpo…`: DPO on a share of the labels, with or without fresh pairs.

`dpo` learns from the kept pairs alone. The others learn from fresh pairs of all other prompts too:
`dpo_reward_model` as the reward model of the same share labels them, `dpo_implicit` as the implicit
reward of `dpo`'s policy does. Each goes to out/unlabelled, with its completions, scored.
"""

from __future__ import annotations

import argparse
from functools import partial

from betaflow.config import load_params, unlabelled_arm
from betaflow.data.labelled import batch_units
from betaflow.training.dpo import dpo_objective
from tasks._arguments import grid_arguments
from tasks._labels import material, read_pairs
from tasks._main import run
from tasks._pairs import train_arm
from tasks.sample import samples

METHODS = ("dpo", "dpo_reward_model", "dpo_implicit")


def main(arguments: argparse.Namespace | None = None) -> None:
    """Train and sample the policy that the command line names."""
    params = load_params()
    given = arguments or grid_arguments(__doc__, ("method", "labelled", "seed"), METHODS)
    arm = unlabelled_arm(params, given.method, given.labelled, given.seed)
    assert arm.beta is not None
    found = material(arm)
    training = params.dpo.training
    # As many steps as on all labelled pairs, so that methods and shares differ in data alone.
    learnt = [found.pairs[i] for i in found.kept] + [found.fresh[i] for i in found.used]
    everything, share = (batch_units(rows, training.batch_of) for rows in (found.pairs, learnt))
    epochs = training.epochs * everything / share
    settings = training.model_copy(update={"epochs": epochs})
    train_arm(
        params,
        arm,
        settings,
        dpo_objective(settings, arm.beta),
        options=settings.model_dump(),
        read=partial(read_pairs, arm=arm, found=found),
        tables={"samples.parquet": partial(samples, params, arm.name)},
    )


if __name__ == "__main__":
    run(main, parses=True)
