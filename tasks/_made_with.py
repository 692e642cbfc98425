"""Whether what lies under `out/` was made with the parameters that are in force."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from betaflow.config import Params, arms
from betaflow.errors import UserError
from betaflow.io import parse_yaml
from tasks.tracking import locked_stages, output_hashes


def require_same(params: Params) -> None:
    """Raise a `UserError` where dvc.lock says that `out/` is of other parameters or inputs.

    Of stages of arms that are no longer in the sweep nothing is asked; and nothing at all where
    there is no dvc.lock.
    """
    folders = {str(arm.model_dir) for arm in arms(params) if arm.has_model}
    present = {
        name: stage
        for name, stage in locked_stages().items()
        if "@" not in name or folders & {out["path"] for out in stage.get("outs", [])}
    }
    changed = [*_other_params(present), *_other_inputs(present)]
    if changed:
        raise UserError(
            f"out/ is not of this params.yaml ({', '.join(sorted(set(changed)))}); run "
            "`make align` (`dvc status` shows what changed)"
        )


def _other_params(stages: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Names of parameters that have other values than a stage was run with."""
    for stage in stages.values():
        for file, values in stage.get("params", {}).items():
            here = parse_yaml(Path(file).read_bytes())
            yield from (name for name, value in values.items() if _at(here, name) != value)


def _other_inputs(stages: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Outputs that a stage was run on, and that have been made anew since."""
    made = output_hashes(stages)
    for stage in stages.values():
        for dep in stage.get("deps", []):
            if made.get(dep["path"], dep["md5"]) != dep["md5"]:
                yield str(dep["path"])


def _at(values: Any, name: str) -> Any:
    for part in name.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values
