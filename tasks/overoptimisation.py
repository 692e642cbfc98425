"""Stage `overoptimisation`: what training made of the gold reward -> out/overoptimisation.

A function of the looks at every arm (`curve.parquet`); without any it writes an empty document,
and loads nothing.
"""

from __future__ import annotations

from pathlib import Path

from betaflow.config import load_params
from betaflow.io import atomic_directory
from betaflow.report.frontier_files import read_curves
from betaflow.report.inputs import read_arms
from betaflow.report.overoptimisation_files import write_overoptimisation
from betaflow.report.overoptimisation_plot import peak
from tasks._main import run, set_threads

FOLDER = Path("out/overoptimisation")


def main() -> None:
    """Look at the start, score every draw, fit, draw, write."""
    params = load_params()
    curves, looks = read_curves(read_arms()), None
    if curves:
        # Not at the top: without looks there is no model to load, and torch takes seconds.
        from tasks._looks import scored_looks

        set_threads(params.sample.threads)
        looks = scored_looks(params, curves)
    with atomic_directory(FOLDER) as folder:
        document = write_overoptimisation(params, looks, folder)
    for group in document["groups"]:
        print(peak(group))


if __name__ == "__main__":
    run(main)
