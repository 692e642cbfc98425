"""The figure of reward and win rate against sampling temperature, a column of panels a method."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from betaflow.report.canvas import new_figure
from betaflow.report.estimates import Row
from betaflow.report.methods import LOOKS, settings_by_method
from betaflow.report.plots import REWARDS, stroke

LINES = {"reward": "", "win_rate_vs_sft": "win rate against SFT"}  # by row of panels, its axis


def draw_temperature(rows: Sequence[Row], reward: str) -> Figure:
    """Reward above, win rate below; a line a setting with its band, SFT across.

    Args:
        rows: of `settings.by_setting`; what was drawn at one temperature alone is left out.
        reward: the column told as `reward`.
    """
    methods = drawn(rows)
    figure, grid = new_figure(2.1 * max(len(methods), 2) + 0.6, 5.0, 2 * len(methods), rows=2)
    handles: list[Line2D] = []
    for place, axes in enumerate(grid):
        line, method = divmod(place, len(methods))
        name = list(LINES)[line]
        title = list(methods)[method]
        points = methods[title]
        _reference(axes, rows, name)
        for number, (point, own) in enumerate(points.items()):
            shade, dash = stroke(title, number)
            x = [row["temperature"] for row in own]
            y, low, high = (
                np.array([row[f"{name}{end}"] for row in own], dtype=float)
                for end in ("", "_low", "_high")
            )
            axes.plot(x, y, color=shade, linestyle=dash, marker=LOOKS[title].marker, markersize=4)
            axes.fill_between(x, low, high, color=shade, alpha=0.12, linewidth=0)
            if line == 0:
                text = f"{title}, {point}" if point else title
                handles.append(Line2D([], [], color=shade, linestyle=dash, label=text))
        if line == 0:
            axes.set_title(title, fontsize=10)
        else:
            axes.set_xlabel("temperature")
        axes.sharey(grid[line * len(methods)])
        if method == 0:
            axes.set_ylabel(LINES[name] or REWARDS[reward.removesuffix("_reward")])
        else:
            axes.tick_params(labelleft=False)
    handles.append(Line2D([], [], color="#515151", linestyle=":", label="SFT"))
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    return figure


def drawn(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """By method and setting, the rows of what was drawn at more temperatures than one."""
    several = {
        method: {point: own for point, own in points.items() if len(own) > 1}
        for method, points in settings_by_method(rows).items()
    }
    return {method: points for method, points in several.items() if points}


def _reference(axes: Axes, rows: Sequence[Row], name: str) -> None:
    own = [row for row in rows if row["method"] == "SFT"]
    axes.plot(
        [row["temperature"] for row in own],
        [0.5 if name == "win_rate_vs_sft" else row[name] for row in own],
        color="#515151",
        linestyle=":",
    )
