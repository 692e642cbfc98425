"""The stages' outputs -> `out/frontier`: frontier.json, tables of arms and settings, figures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd

from betaflow.config import Arm, Params
from betaflow.io import write_json
from betaflow.report.by_prompt import COLUMNS as BY_PROMPT_COLUMNS
from betaflow.report.by_prompt import by_prompt, draw_by_prompt
from betaflow.report.canvas import save
from betaflow.report.frontier import ARM_COLUMNS, Document, frontier, read_draws
from betaflow.report.frontier_plot import draw_frontier
from betaflow.report.inputs import OUT, read_arms, read_samples, read_table
from betaflow.report.settings import COLUMNS, by_setting
from betaflow.report.table import tidy, write_csv
from betaflow.report.temperature_plot import draw_temperature, drawn


def write_frontier(params: Params, folder: Path, *, out: Path = OUT) -> Document:
    """Write the comparison with the optimum; the same inputs give the same bytes.

    Args:
        params: settings; read here are `compare` and `optimum.minimum_ess`.
        folder: an existing folder.
        out: where the stages' outputs lie.

    Returns:
        The content of `frontier.json`, floats rounded, None where nothing was measured.
    """
    arms = read_arms(out)
    columns = ["prompt_id", "draw", "gold_reward", "reward_model"]
    draws = read_draws(
        read_table(out / "optimum" / "draws.parquet", columns), params.optimum.minimum_ess
    )
    samples = read_samples(arms, out)
    found = frontier(arms, samples, read_curves(arms, out), draws, params.compare)
    settings = by_setting(arms, samples, draws, found["reward"], params.compare)
    quarters = by_prompt(arms, samples, draws, found["reward"], params.compare)
    document: Document = tidy({**found, "settings": settings, "by_prompt": quarters})
    write_json(folder / "frontier.json", document)
    names = ["arm", *Arm.model_fields, *ARM_COLUMNS]
    write_csv(document["arms"], names, folder / "table.csv")
    write_csv(document["settings"], COLUMNS, folder / "settings.csv")
    write_csv(document["by_prompt"], BY_PROMPT_COLUMNS, folder / "by_prompt.csv")
    save(lambda: draw_frontier(document), folder / "frontier.png")
    if document["by_prompt"]:
        save(lambda: draw_by_prompt(document["by_prompt"]), folder / "by_prompt.png")
    if drawn(document["settings"]):
        draw = partial(draw_temperature, document["settings"], document["reward"])
        save(draw, folder / "temperature.png")
    return document


def read_curves(arms: list[Arm], out: Path = OUT) -> dict[str, pd.DataFrame]:
    """By arm name, what was looked at while it trained, of arms that were looked at."""
    found = {}
    for arm in arms:
        if not arm.has_model:
            continue
        path = out / arm.model_dir.relative_to("out") / "curve.parquet"
        if path.exists():
            found[arm.name] = pd.read_parquet(path)
    return found
