"""Stage `arms`: list the sweep's arms, and clear away what arms no longer in it left behind.

`compare` depends on the folders that the arms' stages write into, so those must hold the
sweep's arms and nothing else. What is removed stays in DVC's cache: putting a beta back brings
its outputs back without training again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from betaflow.config import (
    Params,
    arms,
    fresh_pairs_dir,
    load_params,
    unlabelled_arm,
    unlabelled_arms,
)
from betaflow.io import write_json
from tasks._main import forget_checkpoints, run

# In a folder of its own it makes sure that the folder is there, for the stages that read it, where
# the sweep has no such arm.
LIST = "arms.json"
MAYBE_NONE = ("ipo", "unlikelihood")
UNLABELLED = Path("out/unlabelled", LIST)


def main() -> None:
    """Write the sweep's arms, and those of some stages alone; remove other arms' outputs."""
    params = load_params()
    sweep, beside = arms(params), unlabelled_arms(params)
    models = [arm for arm in sweep if arm.has_model]
    keep = {
        Path("out", stage): {arm.name for arm in models if arm.stage == stage}
        for stage in ("dpo", *MAYBE_NONE, "ppo")
    }
    for stage in MAYBE_NONE:
        keep[Path("out", stage)].add(LIST)
    keep[UNLABELLED.parent] = {LIST} | _unlabelled(params)
    keep[Path("out/samples")] = {f"{arm.name}.parquet" for arm in sweep}
    keep[Path("out/benchmark")] = {f"{arm.name}.json" for arm in models}
    for folder, names in keep.items():
        for path in sorted(folder.glob("*")) if folder.is_dir() else []:
            if path.name not in names:
                print(f"removing {path}: not in the sweep any more")
                forget_checkpoints(path.name)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    rows = [{"name": arm.name, **arm.model_dump()} for arm in sweep]
    write_json(Path("out", LIST), rows)
    for stage in MAYBE_NONE:
        own = [row for arm, row in zip(sweep, rows, strict=True) if arm.stage == stage]
        write_json(Path("out", stage, LIST), own)
    write_json(UNLABELLED, [{"name": arm.name, **arm.model_dump()} for arm in beside])


def _unlabelled(params: Params) -> set[str]:
    """What the experiment on unlabelled prompts writes: policies, reward models, fresh pairs."""
    grid = params.unlabelled.grid
    models = unlabelled_arms(params) + [
        unlabelled_arm(params, "reward", share, seed)
        for share in grid.labelled
        for seed in grid.seed
    ]
    return {arm.name for arm in models} | {fresh_pairs_dir(seed).name for seed in grid.seed}


if __name__ == "__main__":
    run(main)
