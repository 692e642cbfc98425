"""Stage `dpo`: one arm of DPO, on given pairs or online, or of SLiC -> out/dpo/<arm>."""

from __future__ import annotations

import argparse
from typing import get_args

from betaflow.config import Arm, DPOMethod, load_params
from betaflow.training.dpo import dpo_objective
from tasks._arguments import grid_arguments
from tasks._main import run
from tasks._online import train_online
from tasks._pairs import train_arm

GRID = ("method", "beta", "learning_rate", "seed")


def main(arguments: argparse.Namespace | None = None) -> None:
    """Train the arm that the command line names."""
    params = load_params()
    given = arguments or grid_arguments(__doc__, GRID, methods=get_args(DPOMethod))
    arm, settings = Arm(**vars(given)), params.dpo.training.of(given.method)
    if arm.method == "online_dpo":
        train_online(params, arm)
        return
    objective = dpo_objective(settings, float(given.beta))
    train_arm(params, arm, settings, objective, options=settings.model_dump())


if __name__ == "__main__":
    run(main, parses=True)
