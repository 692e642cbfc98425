"""Stage `frontier`: every arm against the closed-form optimum at its KL -> out/frontier."""

from __future__ import annotations

import sys
from pathlib import Path

from betaflow.config import load_params
from betaflow.io import atomic_directory
from betaflow.report.frontier_files import write_frontier
from tasks._main import forget_checkpoints, run

FOLDER = Path("out/frontier")


def main() -> None:
    """Estimate, draw, write; warn of arms that are better than any policy can be."""
    params = load_params()
    forget_checkpoints("optimum")
    with atomic_directory(FOLDER) as folder:
        document = write_frontier(params, folder)
    for row in document["arms"]:
        share = row["fraction"]
        told = "" if share is None else f", {share:.1%} of the optimum's gain at its KL"
        kl = "unknown" if row["kl"] is None else f"{row['kl']:.3g} nats"
        print(f"{row['arm']}: reward {row['reward']:.3g}, KL {kl}{told}")
    for arm in document["violations"]:
        print(
            f"warning: {arm} lies above the optimum, which no policy can: unless it is chance, "
            "its KL is estimated too low, or its reward is not the draws'",
            file=sys.stderr,
        )


if __name__ == "__main__":
    run(main)
