"""The stages' outputs -> `out/unlabelled-report`: unlabelled.json, table.csv and the figure."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from betaflow.config import CompareSettings, UnlabelledArm
from betaflow.io import read_json, write_json
from betaflow.report.canvas import save
from betaflow.report.inputs import OUT, read_table
from betaflow.report.table import tidy, write_csv
from betaflow.report.unlabelled import COLUMNS, Document, unlabelled
from betaflow.report.unlabelled_plot import alt_text, draw_unlabelled

FIGURE = "unlabelled.png"
# What the document is where nothing was asked for.
NOTHING: Document = {"rows": [], "arms": [], "figures": {}}


def write_unlabelled(settings: CompareSettings, folder: Path, *, out: Path = OUT) -> Document:
    """Write the experiment's numbers; the same inputs give the same bytes.

    Args:
        settings: the judge and how to resample.
        folder: an existing folder. It gets no figure where `unlabelled.grid` is empty.
        out: where the stages' outputs lie.

    Returns:
        The content of `unlabelled.json`, floats rounded, None where nothing was measured.

    Raises:
        UserError: an input is missing or does not fit the others.
    """
    base = out / "unlabelled"
    rows = read_json(base / "arms.json")
    arms = [UnlabelledArm(**{k: v for k, v in row.items() if k != "name"}) for row in rows]
    document = NOTHING
    if arms:
        samples = {arm.name: read_table(base / arm.name / "samples.parquet") for arm in arms}
        labels = {
            arm.name: pd.read_parquet(path)
            for arm in arms
            if (path := base / arm.name / "labels.parquet").exists()
        }
        sft = read_table(out / "samples" / "sft.parquet")
        document = tidy(unlabelled(arms, samples, labels, sft, settings))
        document["figures"] = {FIGURE: alt_text(document)}
        save(lambda: draw_unlabelled(document), folder / FIGURE)
    write_json(folder / "unlabelled.json", document)
    write_csv(document["rows"], COLUMNS, folder / "table.csv")
    return document
