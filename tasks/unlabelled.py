"""Stage `unlabelled`: is DPO held back by learning from labelled prompts alone?

-> out/unlabelled-report; it says nothing where `unlabelled.grid` is empty.
"""

from __future__ import annotations

from pathlib import Path

from betaflow.config import load_params
from betaflow.io import atomic_directory
from betaflow.report.estimates import KL_TEMPERATURE
from betaflow.report.unlabelled_files import write_unlabelled
from tasks._main import forget_checkpoints, run

FOLDER = Path("out/unlabelled-report")
MODELS = Path("out/unlabelled")


def main() -> None:
    """Estimate, draw, write; print each method's reward and its lead over DPO."""
    params = load_params()
    forget_checkpoints(*(folder.name for folder in MODELS.iterdir()))
    with atomic_directory(FOLDER) as folder:
        document = write_unlabelled(params.compare, folder)
    for row in document["rows"]:
        if row["temperature"] == KL_TEMPERATURE:
            lead = row["minus_dpo"]
            told = "" if lead is None else f", {lead:+.3g} over dpo"
            print(f"{row['labelled']:.0%} {row['method']}: reward {row['reward']:.3g}{told}")


if __name__ == "__main__":
    run(main)
