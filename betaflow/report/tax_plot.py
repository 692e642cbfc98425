"""The forest plot of lm-eval: each arm's difference from SFT on each task, and the tax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from betaflow.report.canvas import new_figure
from betaflow.report.estimates import Row
from betaflow.report.methods import LOOKS, colours, label
from betaflow.report.plots import bars
from betaflow.report.tax import arrow

ACROSS = 3  # panels in a row at most
WORDS = {"↑": ", right: better", "↓": ", right: worse", "": ""}
TAX = "alignment_tax"


def tax_figure(document: Mapping[str, Any]) -> Figure:
    """A panel a task (its metric that counts, or its first), and one of the tax where there is one.

    `document` is `estimates.json`, with lm-eval's differences.
    """
    panels = tax_panels(document)
    arms = list(dict.fromkeys(row["arm"] for row in panels[0]["rows"]))
    rows = -(-len(panels) // ACROSS)
    across = -(-len(panels) // rows)
    height = rows * (0.24 * len(arms) + 1.15)
    figure, grid = new_figure(2.4 + 2.9 * across, max(height, 2.4), len(panels), rows)
    first = {row["arm"]: row for row in reversed(document["rows"])}
    shades = colours(document["rows"])
    for index, (axes, panel) in enumerate(zip(grid, panels, strict=True)):
        axes.axvline(0.0, color="#555555", linewidth=1, linestyle=":")
        for row in panel["rows"]:
            place = arms.index(row["arm"])
            look = LOOKS[label(first[row["arm"]])]
            _point(axes, place, row, panel["name"], shades[row["arm"]], look.marker)
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.set_yticks(range(len(arms)), arms if index % across == 0 else [""] * len(arms))
        axes.set_title(panel["title"], fontsize=9.5)
        axes.set_xlabel(panel["axis"], fontsize=9)
        axes.margins(x=0.12)
        axes.locator_params(axis="x", nbins=4)  # labels such as -0.025 are wide
    return figure


def tax_panels(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is drawn: of each panel the title, the axis, the rows and their column."""
    found, better = document["alignment_tax"], document["benchmarks"]["higher_is_better"]
    shown = {one["task"]: one["metric"] for one in found["taxed"]}
    for row in found["rows"]:
        shown.setdefault(row["task"], row["metric"])
    panels: list[dict[str, Any]] = []
    for task, metric in sorted(shown.items()):
        own = [r for r in found["rows"] if (r["task"], r["metric"]) == (task, metric)]
        way = f"{metric}{WORDS[arrow(better, task, metric)]}"
        title = f"{task}\n{metric} less SFT's, {own[0]['documents']:,} documents"
        panels.append({"title": title, "axis": way, "rows": own, "name": "difference"})
    if found["arms"]:
        count = len(found["taxed"])
        title = f"alignment tax\nmean loss over {count} task{'s' if count > 1 else ''}"
        panels.append(
            {
                "title": title,
                "axis": f"points{WORDS['↓']}",
                "rows": [_in_points(row) for row in found["arms"]],
                "name": TAX,
            }
        )
    return panels


def _in_points(row: Row) -> Row:
    """A tax and its interval, as the table tells it."""
    names = [f"{TAX}{end}" for end in ("", "_low", "_high")]
    return row | {name: row[name] and 100 * row[name] for name in names}


def _point(axes: Axes, place: int, row: Row, name: str, colour: Any, marker: str) -> None:
    if row[name] is None:
        return
    axes.errorbar(
        row[name],
        place,
        xerr=bars(row, name),
        color=colour,
        marker=marker,
        markersize=5.5,
        capsize=2.5,
        linewidth=1.2,
        linestyle="",
    )


def tax_alt_text(document: Mapping[str, Any]) -> str:
    """What the figure shows, for readers who do not see it."""
    found = document["alignment_tax"]
    tasks = ", ".join(dict.fromkeys(row["task"] for row in found["rows"]))
    words = "; ".join(_words(row) for row in found["arms"] if row["alignment_tax"] is not None)
    tax = f" Alignment tax in points: {words}." if words else ""
    return (
        f"Forest plot of each arm's difference from SFT on {tasks}, with intervals and a line at "
        f"zero. The numbers are in the table below.{tax}"
    )


def _words(row: Row) -> str:
    low, high = row["alignment_tax_low"], row["alignment_tax_high"]
    ends = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{row['arm']} {100 * row['alignment_tax']:.1f}{ends}"


def has_differences(document: Mapping[str, Sequence[Any]]) -> bool:
    """Whether there is anything to draw: documents were kept, of an arm beside SFT."""
    return bool(document["rows"])
