"""What the training stages share: how a run ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from betaflow.io import LOCAL, atomic_directory, write_json, write_jsonl
from betaflow.policy.flops import forward_flops
from betaflow.policy.loading import save_model

if TYPE_CHECKING:
    import pandas as pd

    from betaflow.training.loop import Trained
    from tasks.tracking import StepLog

    Table = pd.DataFrame | Callable[[Path], pd.DataFrame] | None


def finish(
    output: str | Path,
    model: Any,
    tokenizer: Any,
    trained: Trained,
    figures: dict[str, float],
    about: dict[str, Any],
    log: StepLog,
    *,
    phases: dict[str, float] | None = None,
    tables: Mapping[str, Table] | None = None,
) -> None:
    """Write a trained model with its metrics whole, and log the end. Its checkpoints stay.

    `train_flops` are those the rows count, or else three forward passes of every computed token
    (Kaplan et al. 2020): a forward one, and a backward one that takes two.

    Args:
        phases: mean seconds a step of each part of it.
        tables: by file name, what is written beside the model; None: no such file; a function:
            it is called, with the folder, once the model lies there.
    """
    step = 3 * forward_flops(model)

    def flops(row: Mapping[str, float]) -> float:
        return row.get("flops", step * row.get("computed_tokens", row["tokens"]))

    with atomic_directory(output) as folder:
        save_model(model, tokenizer, folder)
        for name, given in (tables or {}).items():
            table = given(folder) if callable(given) else given
            if table is not None:
                table.to_parquet(folder / name, index=False)
        write_jsonl(folder / "metrics.jsonl", trained.metrics)
        summary = {
            **about,
            "steps": len(trained.metrics),
            "train_tokens": int(sum(row["tokens"] for row in trained.metrics)),
            "sampled_tokens": int(sum(row.get("sampled_tokens", 0) for row in trained.metrics)),
            "train_flops": sum(map(flops, trained.metrics)),
            "metrics": figures,
        }
        if trained.best_step is not None:
            summary["best_step"] = trained.best_step
        write_json(folder / "summary.json", summary)
    # Wall time is kept outside DVC: it is not a function of a stage's inputs.
    seconds: dict[str, Any] = {
        "train_seconds": round(trained.seconds, 2),
        "fingerprint": about["fingerprint"],
    }
    if phases:
        seconds["phases"] = {name: round(spent, 4) for name, spent in phases.items()}
    write_json(LOCAL / "timings" / f"{about['arm']}.json", seconds)
    log.finish(figures, len(trained.metrics))
    print(", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
