"""Stage `unlikelihood`: one arm of Preferred-FT or Unlikelihood -> out/unlikelihood/<arm>."""

from __future__ import annotations

import argparse

import torch

from betaflow.config import load_params, unlikelihood_arm
from betaflow.objectives.dpo import USED_BY, DPOLoss
from betaflow.objectives.unlikelihood import unlikelihood_loss
from tasks._arguments import grid_arguments
from tasks._main import run
from tasks._pairs import train_arm

GRID = ("alpha", "learning_rate", "seed")


def main(arguments: argparse.Namespace | None = None) -> None:
    """Train the arm that the command line names, as `dpo.training` says but for the loss."""
    params = load_params()
    given = arguments or grid_arguments(__doc__, GRID)

    def objective(*pairs: torch.Tensor) -> DPOLoss:
        return unlikelihood_loss(*pairs[:4], alpha=float(given.alpha))

    settings = params.dpo.training
    options = settings.model_dump(exclude={"loss", *USED_BY})
    train_arm(params, unlikelihood_arm(**vars(given)), settings, objective, options=options)


if __name__ == "__main__":
    run(main, parses=True)
