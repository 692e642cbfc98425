"""The comparison as table.csv, table.json and a short view for the console."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from betaflow.config import Arm
from betaflow.io import atomic_file, write_json
from betaflow.report.costs import whole
from betaflow.report.estimates import Row

DIGITS = 6  # significant digits; the intervals are far wider than the seventh
_ESTIMATES = ["gold_reward", "reward_model", "kl", "win_rate_vs_sft", "lc_win_rate_vs_sft"]
_ESTIMATES += ["win_rate_vs_ppo", "rating", "gold_reward_ood", "completion_tokens", "finished"]
_ESTIMATES += ["repetition", "distinct", "alignment_tax", "optimum_fraction"]
COLUMNS = ["arm", *Arm.model_fields, "temperature"]
COLUMNS += [f"{name}{end}" for name in _ESTIMATES for end in ("", "_low", "_high")]
COLUMNS += [f"win_rate_vs_{name}_{of}" for name in ("sft", "ppo") for of in ("prompts", "verdicts")]
COLUMNS += ["prompts", "samples", "train_tokens", "whole_tokens"]
COLUMNS += ["train_flops", "whole_flops", "train_seconds", "whole_seconds"]


def tidy(value: Any) -> Any:
    """Floats to `DIGITS` significant digits, NaN and infinities to None; containers gone through.

    JSON has no NaN, and rounding keeps last-bit noise out of files that are compared.
    """
    if isinstance(value, Mapping):
        return {key: tidy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [tidy(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def with_seconds(rows: Sequence[Row], seconds: Mapping[str, float]) -> list[Row]:
    """Rows with `train_seconds` and `whole_seconds`, None where they were not measured here."""
    return [
        tidy(
            {
                **row,
                "train_seconds": seconds.get(row["arm"], math.nan),
                "whole_seconds": whole(row, seconds),
            }
        )
        for row in rows
    ]


def columns(rows: Sequence[Row]) -> list[str]:
    """The table's columns: the fixed ones, then lm-eval's by name."""
    extra = {name for row in rows for name in row} - set(COLUMNS)
    return COLUMNS + sorted(extra)


def write_tables(rows: Sequence[Row], folder: Path) -> None:
    """Write `table.csv` (missing: empty) and `table.json` (missing: null) into `folder`."""
    names = columns(rows)
    table = [{name: row.get(name) for name in names} for row in tidy(list(rows))]
    write_csv(table, names, folder / "table.csv")
    write_json(folder / "table.json", table)


def write_csv(rows: Sequence[Row], names: Sequence[str], path: Path) -> None:
    """Write these columns of the rows, None as nothing."""
    with (
        atomic_file(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, names, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def console_rows(rows: Sequence[Row], judge: str = "gold") -> list[dict[str, str]]:
    """The short view: a dict of texts per row. `rows` are the table's, with train_seconds.

    Args:
        judge: `gold` or `reward_model`: which reward is shown.
    """
    rows = tidy(list(rows))
    reward = "gold_reward" if judge == "gold" else "reward_model"
    title = "gold reward" if judge == "gold" else "reward model"
    return [
        {
            "arm": row["arm"],
            "T": f"{row['temperature']:g}",
            title: _with_half_width(row, reward),
            "KL": _with_half_width(row, "kl"),
            "win % vs SFT": _win(row, "win_rate_vs_sft"),
            "win % vs PPO": _win(row, "win_rate_vs_ppo"),
            "tokens": _number(row["completion_tokens"], 1),
            "train s": _number(row.get("train_seconds"), 0),
        }
        for row in rows
    ]


def console_table(rows: Sequence[Row], judge: str = "gold") -> str:
    """`console_rows` as aligned text."""
    cells = console_rows(rows, judge)
    if not cells:
        return "(no arms)"
    widths = {name: max(len(name), *(len(row[name]) for row in cells)) for name in cells[0]}

    def line(row: Mapping[str, str]) -> str:
        first, *rest = widths
        found = [row[first].ljust(widths[first])]
        return "  ".join(found + [row[name].rjust(widths[name]) for name in rest]).rstrip()

    header = line({name: name for name in widths})
    return "\n".join([header, "-" * len(header), *map(line, cells)])


def _with_half_width(row: Row, name: str) -> str:
    text, low, high = _number(row[name], 2), row[f"{name}_low"], row[f"{name}_high"]
    if low is None or high is None or low == high:
        return text
    return f"{text} ± {_number((high - low) / 2, 2)}"


def _win(row: Row, name: str) -> str:
    """A win rate in percent with its interval, which near 100 lies far from symmetric."""
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if value is None:
        return "-"
    if low is None or high is None or low == high:
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f} ({100 * low:.0f} to {100 * high:.0f})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
