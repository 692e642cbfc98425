"""The looks at every arm -> `out/overoptimisation`: the document, two tables and the figures."""

from __future__ import annotations

from pathlib import Path

from betaflow.config import Arm, Params
from betaflow.io import write_json
from betaflow.report.canvas import save
from betaflow.report.curves import LOOK_COLUMNS, Looks
from betaflow.report.estimates import Row
from betaflow.report.inputs import OUT, read_arms, read_table
from betaflow.report.overoptimisation import FIT_COLUMNS, Document, overoptimisation
from betaflow.report.overoptimisation_plot import BEST_OF_N, figures
from betaflow.report.table import tidy, write_csv


def write_overoptimisation(
    params: Params, looks: Looks | None, folder: Path, *, out: Path = OUT
) -> Document:
    """Write what the looks tell; the same inputs give the same bytes.

    Args:
        params: settings; read here is `compare`.
        looks: at the arms; None: at none, and the document and the tables are empty.
        folder: an existing folder.
        out: where the stages' outputs lie.

    Returns:
        The content of `overoptimisation.json`, floats rounded, None where nothing was measured or
        a number is infinite.
    """
    columns = ["prompt_id", "draw", "gold_reward", "reward_model"]
    draws = read_table(out / "optimum" / "draws.parquet", columns)
    document: Document = tidy(overoptimisation(read_arms(out), looks, draws, params.compare))
    drawn = figures(document)
    document["figures"] = {name: text for name, (_, text) in drawn.items()}
    write_json(folder / "overoptimisation.json", document)
    write_csv(document["looks"], ["arm", *Arm.model_fields, *LOOK_COLUMNS], folder / "looks.csv")
    write_csv(fit_rows(document), ["over", "judge", *FIT_COLUMNS], folder / "fits.csv")
    for name, (draw, _) in drawn.items():
        save(draw, folder / name)
    return document


def fit_rows(document: Document) -> list[Row]:
    """Every fit of the document in a row: of each group, each method as a whole, Best-of-N."""
    parts = [(group["name"], group) for group in document["groups"]]
    parts += [(f"{row['method']}, all settings", row) for row in document["methods"]]
    if document["best_of_n"] is not None:
        parts.append((BEST_OF_N, {"judge": "gold_reward"} | document["best_of_n"]))
    return [
        {"over": name, "judge": part["judge"], **found}
        for name, part in parts
        for found in part["fits"]
    ]
