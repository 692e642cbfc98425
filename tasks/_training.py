"""What the training stages share: the identity of a run, and what is written beside its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from betaflow.errors import UserError
from betaflow.io import LOCAL, write_json
from tasks._inputs import fingerprint

if TYPE_CHECKING:
    from betaflow.training.loop import Trained

# How often a checkpoint is written decides no byte of the result.
NEUTRAL = {"checkpoint_seconds"}


def training_fingerprint(stage: str, settings: Any) -> str:
    """SHA-256 of what `dvc.yaml` says a stage depends on (data and code), and of its settings."""
    try:
        stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    except FileNotFoundError:
        raise UserError("dvc.yaml is missing; run from the repository's root") from None
    deps = [Path(dep) for dep in stages[stage]["deps"]]
    missing = [str(dep) for dep in deps if not dep.exists()]
    if missing:
        raise UserError(f"{', '.join(missing)} is missing; run `make align` (or `dvc repro`)")
    return fingerprint(list(deps), _without_neutral(settings))


def _without_neutral(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {k: _without_neutral(v) for k, v in settings.items() if k not in NEUTRAL}
    return settings


def write_training(
    folder: Path, trained: Trained, figures: dict[str, float], about: dict[str, Any]
) -> None:
    """Write `metrics.jsonl` and `summary.json` beside a trained model. No wall time: see below."""
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        for row in trained.metrics:
            file.write(json.dumps(row, sort_keys=True) + "\n")
    summary = {
        **about,
        "steps": len(trained.metrics),
        "train_tokens": int(sum(row["tokens"] for row in trained.metrics)),
        "metrics": figures,
    }
    text = json.dumps(summary, sort_keys=True, indent=2) + "\n"
    (folder / "summary.json").write_text(text, encoding="utf-8")


def write_timing(name: str, seconds: float) -> None:
    """Keep measured wall time outside DVC: it is not a function of a stage's inputs."""
    write_json(LOCAL / "timings" / f"{name}.json", {"train_seconds": round(seconds, 2)})
