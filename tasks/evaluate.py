"""A model folder sampled or benchmarked as the stages do it to an arm, into a file anywhere.

`promote` runs this on a champion that comes from the registry:
`python -m tasks.evaluate samples --model FOLDER --out FILE`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from betaflow.config import load_params
from betaflow.io import atomic_file, write_json
from tasks._main import run


def main() -> None:
    """Do the part that the command line names, by params.yaml."""
    parser = argparse.ArgumentParser(prog="python -m tasks.evaluate", description=__doc__)
    parser.add_argument("part", choices=["samples", "benchmark"])
    parser.add_argument("--model", type=Path, required=True, help="a `save_pretrained` folder")
    parser.add_argument("--out", type=Path, required=True, help="the file that is written")
    asked = parser.parse_args()
    params = load_params()
    if asked.part == "samples":
        from tasks.sample import samples

        frame = samples(params, asked.model.name, asked.model)
        with atomic_file(asked.out) as path:
            frame.to_parquet(path, index=False)
    else:
        from tasks.benchmark import benchmark

        write_json(asked.out, benchmark(params, asked.model.name, asked.model))


if __name__ == "__main__":
    run(main, parses=True)
