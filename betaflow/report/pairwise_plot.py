"""The heatmap of all win rates: how often the row's arm is preferred to the column's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from betaflow.report.canvas import new_figure
from betaflow.report.estimates import Row
from betaflow.report.pairwise import by_rating

COLOURS = "PuOr"  # told apart by every reader (ColorBrewer); white is one half
LEGIBLE = 24  # arms, beyond which cells are too small for their numbers
CELL, SMALL_CELL, NAMES = 0.45, 0.17, 2.9  # inches: a cell, one without a number, the labels
BLANK, INK = "#d9d9d9", "#1b1f24"


def pairwise_figure(found: Mapping[str, Any]) -> Figure:
    """The matrix with arms by falling rating; `found` is `estimates.json`'s `pairwise`.

    A number in parentheses has an interval that holds one half. Grey: not judged, or itself.
    """
    arms = by_rating(found)
    cells = {(row["arm"], row["other"]): row for row in found["rows"]}
    rates = np.array(
        [[_rate(cells.get((arm, other))) for other in arms] for arm in arms], dtype=float
    )
    numbers = len(arms) <= LEGIBLE
    side = (CELL if numbers else SMALL_CELL) * len(arms) + NAMES
    figure, (axes,) = new_figure(max(side + 0.9, 5.5), max(side, 4.2))
    axes.set_facecolor(BLANK)
    image = axes.imshow(rates, cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    size = 8.5 if numbers else 6.0
    axes.set_xticks(range(len(arms)), arms, rotation=90, fontsize=size)
    axes.set_yticks(range(len(arms)), arms, fontsize=size)
    axes.grid(False)
    axes.set_xlabel("is preferred to …")
    if numbers:
        for place in np.ndindex(rates.shape):
            _write(axes, place, cells.get((arms[place[0]], arms[place[1]])))
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02)
    bar.set_label(f"win rate, T = {found['temperature']:g} (a tie is half)")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _rate(row: Row | None) -> float:
    return float("nan") if row is None or row["estimate"] is None else row["estimate"]


def _write(axes: Axes, place: tuple[int, ...], row: Row | None) -> None:
    """A cell's win rate in percent, in ink or white, whichever is read more easily."""
    if row is None or row["estimate"] is None:
        return
    red, green, blue, _ = colormaps[COLOURS](row["estimate"])
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
    text = f"{100 * row['estimate']:.0f}"
    if unsure(row):
        text = f"({text})"
    axes.text(
        place[1], place[0], text,
        ha="center", va="center", fontsize=8, color="white" if dark else INK,
    )  # fmt: skip


def unsure(row: Row) -> bool:
    """Whether the interval holds one half, or there is none."""
    low, high = row["low"], row["high"]
    return low is None or high is None or low <= 0.5 <= high


def pairwise_alt_text(found: Mapping[str, Any]) -> str:
    """What the figure shows, for readers who do not see it."""
    arms, half = by_rating(found), len(found["rows"]) // 2
    told = sum(
        not unsure(row)
        for row in found["rows"]
        if arms.index(row["arm"]) < arms.index(row["other"])
    )
    return (
        f"Heatmap of the win rates of {len(arms)} arms against each other at T = "
        f"{found['temperature']:g}, from the highest rating ({arms[0]}) to the lowest "
        f"({arms[-1]}). Of {half} pairs {told} have an interval that does not hold one half. The "
        "numbers are in the table below."
    )
