"""What the training stages share: the identity of a run, and how it ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from betaflow.errors import UserError
from betaflow.io import LOCAL, atomic_directory, write_json, write_jsonl
from betaflow.policy.loading import save_model
from betaflow.training import checkpoints
from tasks._inputs import fingerprint, without_neutral

if TYPE_CHECKING:
    from betaflow.training.loop import Trained
    from tasks.tracking import StepLog


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
    return fingerprint(list(deps), without_neutral(settings))


def finish(
    output: str | Path,
    model: Any,
    tokenizer: Any,
    trained: Trained,
    figures: dict[str, float],
    about: dict[str, Any],
    log: StepLog,
) -> None:
    """Write a trained model with its metrics whole, log the end, and clear its checkpoints."""
    with atomic_directory(output) as folder:
        save_model(model, tokenizer, folder)
        write_jsonl(folder / "metrics.jsonl", trained.metrics)
        summary = {
            **about,
            "steps": len(trained.metrics),
            "train_tokens": int(sum(row["tokens"] for row in trained.metrics)),
            "metrics": figures,
        }
        if trained.best_step is not None:
            summary["best_step"] = trained.best_step
        write_json(folder / "summary.json", summary)
    # Wall time is kept outside DVC: it is not a function of a stage's inputs.
    seconds = {"train_seconds": round(trained.seconds, 2)}
    write_json(LOCAL / "timings" / f"{about['arm']}.json", seconds)
    log.finish(figures, len(trained.metrics))
    checkpoints.clear(about["arm"])
    print(", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
