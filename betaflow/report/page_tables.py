"""The page's tables and pictures, as texts."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from betaflow.config import Arm
from betaflow.errors import UserError
from betaflow.report import text
from betaflow.report.estimates import Row
from betaflow.report.frontier_plot import alt_text
from betaflow.report.methods import LABELS, SCORERS, STRENGTHS, trials

COLOURS = 128  # of a plot in the page
PIXELS = 1.5  # of a plot to one of the page, for sharp screens
# title, column, decimals, scale; the page explains them below the table
COLUMNS = [
    ("gold reward", "gold_reward", 2, 1.0),
    ("reward model", "reward_model", 2, 1.0),
    ("KL, nats", "kl", 2, 1.0),
    ("% of the optimum", "optimum_fraction", 0, 100.0),
    ("win % vs SFT", "win_rate_vs_sft", 1, 100.0),
    ("win % vs PPO", "win_rate_vs_ppo", 1, 100.0),
    ("gold reward, other domain", "gold_reward_ood", 2, 1.0),
    ("tokens", "completion_tokens", 1, 1.0),
    ("ended %", "finished", 1, 100.0),
]


def table(rows: Sequence[Row], best: str) -> list[dict[str, Any]]:
    """Rows as texts: the arm, its estimates (`COLUMNS`), tokens trained and seconds."""
    shown = [item for item in COLUMNS if any(row[item[1]] is not None for row in rows)]
    return [
        {
            "arm": row["arm"],
            "best": row["arm"] == best,
            "temperature": f"{row['temperature']:g}",
            "cells": [
                {"title": title, **text.estimate(row, name, digits, scale)}
                for title, name, digits, scale in shown
            ],
            "train_tokens": text.number(row["train_tokens"], 0),
            "whole_tokens": text.number(row["whole_tokens"], 0),
            "train_seconds": text.number(row["train_seconds"], 0),
            "whole_flops": text.power(row["whole_flops"]),
            "whole_seconds": text.number(row["whole_seconds"], 0),
        }
        for row in rows
    ]


def against_optimum(frontier: Mapping[str, Any], plots: Path) -> dict[str, Any] | None:
    """The figure of `frontier.json`, its methods' shares and what it warns of; None without."""
    best = frontier["optimum"]
    if best is None:
        return None
    title = "Reward against KL, and the closed-form optimum"
    (figure,) = images(plots, {"frontier": title}, {"frontier": alt_text(frontier)})
    columns = [("% of the optimum's area, its settings", "area")]
    others = [row["against"] for row in frontier["methods"] if row["against"]]
    columns += [(f"points more than {others[0]}", "difference")] if others else []
    columns += [("% of the optimum's area, all looks", "looks_area")]
    shown = [
        item for item in columns if any(row[item[1]] is not None for row in frontier["methods"])
    ]
    return {
        "figure": figure,
        "draws": f"{best['draws']:,}",
        "trusted_kl": f"{best['trusted_kl']:.2f}",
        "violations": frontier["violations"],
        "titles": [title for title, _ in shown],
        "shown": [name for _, name in shown],
        "methods": [
            {
                "method": row["method"],
                "range": f"{row['low_kl']:g} to {row['high_kl']:.3g}",
                "cells": [
                    text.estimate(row, name, 0, 100.0) | {"of": _area_of(row, name)}
                    for _, name in shown
                ],
            }
            for row in frontier["methods"]
            if shown
        ],
    }


def _area_of(row: Row, name: str) -> str:
    """Of how many points and prompts a method's area is; nothing where there is none."""
    points, prompts = {
        "area": ("settings", "prompts"),
        "difference": ("settings", "prompts"),
        "looks_area": ("looks", "looks_prompts"),
    }[name]
    return "" if row[name] is None else f"{row[points]:,} {points}, {row[prompts]:,} prompts"


def trial_table(arms: Sequence[Arm]) -> list[dict[str, str]]:
    """By method: tuning trials, seeds of each, and the values tried, as texts."""
    names = [*STRENGTHS, ("target_kl", "target KL"), ("scorer", "by"), ("learning_rate", "rate")]
    rows = []
    for method, count in trials(arm for arm in arms if arm.method != "sft").items():
        own = [arm for arm in arms if arm.method == method]
        tried = []
        for name, symbol in names:
            values = dict.fromkeys(getattr(arm, name) for arm in own)
            known = [SCORERS.get(value, str(value)) for value in values if value is not None]
            if known:
                tried.append(f"{symbol}: {', '.join(known)}")
        seeds = len({arm.seed for arm in own if arm.seed is not None})
        rows.append(
            {
                "method": LABELS[method],
                "trials": str(count),
                "seeds": str(seeds) if seeds else text.DASH,
                "tried": "; ".join(tried),
            }
        )
    return rows


def images(
    folder: Path, titles: Mapping[str, str], alternatives: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Plots as base64 with name, title, alternative text and the width to show them at."""
    found = []
    for name, title in titles.items():
        path = folder / f"{name}.png"
        if not path.exists():
            raise UserError(f"{path} is missing; run `dvc repro -f -s compare` to draw it again")
        content = path.read_bytes()
        width = int.from_bytes(content[16:20], "big")  # of the PNG's first chunk, in pixels
        found.append(
            {
                "name": name,
                "title": title,
                "alt": alternatives[name],
                "data": base64.b64encode(_smaller(content)).decode("ascii"),
                "width": int(width / PIXELS),
            }
        )
    return found


def _smaller(content: bytes) -> bytes:
    """A PNG of few colours, as a plot is, at a third of its size."""
    picture = Image.open(BytesIO(content)).convert("RGB")
    found = BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(found, "PNG", optimize=True)
    return found.getvalue()
