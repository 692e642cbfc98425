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

# So that the folder is there, for `compare`, where the sweep has no such arm.
UNLIKELIHOOD = Path("out/unlikelihood/arms.json")


def main() -> None:
    """Write the sweep's arms, and those of `unlikelihood`; remove other arms' outputs."""
    sweep = arms(load_params())
    models = [arm for arm in sweep if arm.has_model]
    keep = {
        Path("out", stage): {arm.name for arm in models if arm.stage == stage}
        for stage in ("dpo", "unlikelihood", "ppo")
    }
    keep[UNLIKELIHOOD.parent].add(UNLIKELIHOOD.name)
    keep[Path("out/samples")] = {f"{arm.name}.parquet" for arm in sweep}
    keep[Path("out/benchmark")] = {f"{arm.name}.json" for arm in models}
    for folder, names in keep.items():
        for path in sorted(folder.glob("*")) if folder.is_dir() else []:
            if path.name not in names:
                print(f"removing {path}: not in the sweep any more")
                checkpoints.clear(path.name)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    rows = [{"name": arm.name, **arm.model_dump()} for arm in sweep]
    write_json("out/arms.json", rows)
    own = [row for arm, row in zip(sweep, rows, strict=True) if arm.stage == "unlikelihood"]
    write_json(UNLIKELIHOOD, own)


if __name__ == "__main__":
    run(main)
