"""Stage `dpo`: one arm of Direct Preference Optimization, IPO or SLiC -> out/dpo/<arm>."""

from __future__ import annotations

import argparse
from typing import get_args

from betaflow.config import Arm, PairMethod, load_params
from betaflow.training.dpo import dpo_objective
from tasks._arguments import grid_arguments
from tasks._main import run
from tasks._pairs import train_arm

GRID = ("method", "beta", "learning_rate", "seed")


def main(arguments: argparse.Namespace | None = None) -> None:
    """Train the arm that the command line names."""
    params = load_params()
    given = arguments or grid_arguments(__doc__, GRID, methods=get_args(PairMethod))
    settings = params.dpo.training.of(given.method)
    objective = dpo_objective(settings, float(given.beta))
    train_arm(params, Arm(**vars(given)), settings, objective, options=settings.model_dump())


if __name__ == "__main__":
    run(main)
