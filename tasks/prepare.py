"""Stage `prepare`: data -> out/data (SFT text, prompts, human pairs, statistics)."""

from __future__ import annotations

from betaflow.config import load_params
from betaflow.data.prepare import prepare, summary, write
from betaflow.io import atomic_directory
from tasks._main import run


def main() -> None:
    """Prepare what `params.yaml`'s `data` section names and say what came of it."""
    prepared = prepare(load_params().data)
    with atomic_directory("out/data") as folder:
        write(prepared, folder)
    print(summary(prepared.statistics))


if __name__ == "__main__":
    run(main)
