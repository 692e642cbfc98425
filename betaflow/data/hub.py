"""Datasets by hub name, or a local folder in the hub's layout (then no network is needed)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from betaflow.data.files import Row, optional
from betaflow.errors import UserError

COLUMNS = ("prompt", "chosen", "rejected")


def read_hub_rows(
    name: str, split: str | None, revision: str | None = None
) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) for each row of a split (default: train), preference columns only.

    No code that a dataset brings is ever run. Raises `UserError` if the dataset or the split
    can't be had, or the columns are not there.
    """
    datasets = optional("datasets", "data.source: hub")
    split = split or "train"
    try:
        dataset = datasets.load_dataset(name, split=split, revision=revision)
    except Exception as error:  # the package raises its own, the network's and Arrow's errors
        reason = str(error).strip() or type(error).__name__
        kind = "the local folder" if Path(name).is_dir() else "the hub dataset"
        raise UserError(
            f"data.path: {kind} {name!r}, split {split!r}, can't be loaded: {reason}"
        ) from None
    columns = [column for column in COLUMNS if column in dataset.column_names]
    if "chosen" not in columns or "rejected" not in columns:
        raise UserError(
            f"{name}: needs the columns `chosen` and `rejected` (and `prompt`, unless they are "
            f"whole conversations); it has {', '.join(dataset.column_names)}"
        )
    for number, row in enumerate(dataset.select_columns(columns), start=1):
        yield f"{name} [{split}]: row {number}", row
