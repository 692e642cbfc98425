"""Figures with the same look and the same bytes wherever they are drawn.

matplotlib's own defaults whatever the user's matplotlibrc says, no date, no version.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.style import context as style

RC: dict[str, Any] = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
}
RC |= {"grid.color": "#e3e3e3", "axes.axisbelow": True, "legend.frameon": False}


def new_figure(
    width: float, height: float, panels: int = 1, rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure, in inches, of so many panels side by side; in rows, the last maybe shorter."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, -(-panels // rows), squeeze=False).ravel()
    for spare in axes[panels:]:
        spare.remove()
    return figure, list(axes[:panels])


def save(draw: Callable[[], Figure], path: Path) -> None:
    """Draw a figure in the comparison's style and write it as PNG."""
    with style("default"), matplotlib.rc_context(RC):  # type: ignore[arg-type]
        figure = draw()
        figure.savefig(path, format="png", metadata={"Software": None}, facecolor="white")
