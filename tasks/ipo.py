"""Stage `ipo`: one arm of IPO -> out/ipo/<arm>."""

from __future__ import annotations

import argparse

from betaflow.config import Arm, load_params
from betaflow.training.dpo import dpo_objective
from tasks._arguments import grid_arguments
from tasks._main import run
from tasks._pairs import train_arm

GRID = ("beta", "learning_rate", "seed")


def main(arguments: argparse.Namespace | None = None) -> None:
    """Train the arm that the command line names, as `dpo.training` says but for the loss."""
    params = load_params()
    given = arguments or grid_arguments(__doc__, GRID)
    arm, settings = Arm(method="ipo", **vars(given)), params.dpo.training.of("ipo")
    objective = dpo_objective(settings, float(given.beta))
    train_arm(params, arm, settings, objective, options=settings.model_dump())


if __name__ == "__main__":
    run(main, parses=True)
