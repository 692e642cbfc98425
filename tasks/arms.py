"""Stage `arms`: list the sweep's arms, and clear away what arms no longer in it left behind.

`compare` depends on the folders that the arms' stages write into, so those must hold the
sweep's arms and nothing else. What is removed stays in DVC's cache: putting a beta back brings
its outputs back without training again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from betaflow.config import arms, load_params
from betaflow.io import write_json
from betaflow.training import checkpoints
from tasks._main import run


def main() -> None:
    """Write `out/arms.json`; remove other arms' outputs."""
    sweep = arms(load_params())
    keep = {Path("out/dpo"): set[str](), Path("out/ppo"): set[str]()}
    for arm in sweep:
        if arm.method != "sft":
            keep[arm.model_dir.parent].add(arm.name)
    keep[Path("out/samples")] = {f"{arm.name}.parquet" for arm in sweep}
    keep[Path("out/benchmark")] = {f"{arm.name}.json" for arm in sweep}
    for folder, names in keep.items():
        for path in sorted(folder.glob("*")) if folder.is_dir() else []:
            if path.name not in names:
                print(f"removing {path}: not in the sweep any more")
                checkpoints.clear(path.name)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json("out/arms.json", [{"name": arm.name, **arm.model_dump()} for arm in sweep])


if __name__ == "__main__":
    run(main)
