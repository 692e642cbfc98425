"""The comparison table as `compare` left it: printed, and kept as a Prefect artifact."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path

from rich.table import Table

from betaflow.report.rendered import is_rendered
from flows.stages import stage_environment

FOLDER = Path("out/compare")
TABLE, ESTIMATES = FOLDER / "table.csv", FOLDER / "estimates.json"

# The columns that fit a terminal; the file and the report have them all.
_SHOWN = {
    "arm": "arm",
    "temperature": "T",
    "gold_reward": "gold reward",
    "reward_model": "reward model",
    "kl": "KL, nats",
    "win_rate_vs_sft": "wins vs SFT",
    "win_rate_vs_ppo": "wins vs PPO",
    "completion_tokens": "tokens",
}

Row = dict[str, str]


def read_table(workspace: Path) -> list[Row]:
    """Rows of `table.csv`; written anew where it is not of the estimates (DVC checked them out).

    Returns an empty list where nothing has been compared yet.
    """
    known = (workspace / ESTIMATES).exists()
    if known and not is_rendered(workspace / FOLDER, workspace / FOLDER.parent):
        subprocess.run(
            [sys.executable, "-m", "tasks.report"],
            cwd=workspace,
            env=stage_environment("report", workspace),
            check=True,
            capture_output=True,
            text=True,
        )
    if not (workspace / TABLE).exists():
        return []
    with (workspace / TABLE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def render(rows: list[Row]) -> Table:
    """The table for a terminal: estimates with their intervals, columns with nothing left out."""
    table = Table(title="Comparison: estimate [interval]", title_justify="left")
    columns = [c for c in _SHOWN if any(_number(row, c) for row in rows) or c == "arm"]
    # In the embedded world the reward is known: the reward model's score adds little.
    if "gold_reward" in columns and "reward_model" in columns:
        columns.remove("reward_model")
    for column in columns:
        table.add_column(_SHOWN[column], justify="left" if column == "arm" else "right")
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and before["arm"] != row["arm"]:
            table.add_section()
        table.add_row(*(row["arm"] if c == "arm" else _cell(row, c) for c in columns))
    return table


def _cell(row: Row, column: str) -> str:
    low, high = _number(row, f"{column}_low"), _number(row, f"{column}_high")
    return _number(row, column) + (f" [{low}, {high}]" if low and high else "")


def _number(row: Row, column: str) -> str:
    try:
        value = float(row.get(column) or "nan")
    except ValueError:
        return ""
    return "" if math.isnan(value) else f"{value:.3g}"
