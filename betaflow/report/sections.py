"""The report's sections on statistics: their contexts and their figures. Each has a template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from betaflow.report.canvas import save
from betaflow.report.length import length_section
from betaflow.report.pairwise import pairwise_section, ratings_section
from betaflow.report.pairwise_plot import pairwise_alt_text, pairwise_figure
from betaflow.report.power import power_section
from betaflow.report.quality import quality_section
from betaflow.report.tax import tax_section
from betaflow.report.tax_plot import has_differences, tax_alt_text, tax_figure

# As `html.images`: of titles and alternative texts by plot name.
Images = Callable[[Mapping[str, str], Mapping[str, str]], list[dict[str, Any]]]


def write_figures(document: Mapping[str, Any], folder: Path) -> None:
    """Write the sections' figures as PNG into `folder`; `document` is `estimates.json`."""
    draw: dict[str, Callable[[], Figure]] = {
        "pairwise": partial(pairwise_figure, document["pairwise"])
    }
    if has_differences(document["alignment_tax"]):
        draw["alignment_tax"] = partial(tax_figure, document)
    for name, figure in draw.items():
        save(figure, folder / f"{name}.png")


def sections(document: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """By section, what its template shows; `document` is `estimates.json`."""
    title = "Win rates of all arms against all"
    (matrix,) = images({"pairwise": title}, {"pairwise": pairwise_alt_text(document["pairwise"])})
    tax = tax_section(document)
    if tax is not None:
        tax["figure"] = None
        if has_differences(document["alignment_tax"]):
            name, title = "alignment_tax", "Differences from SFT on lm-eval's tasks"
            (tax["figure"],) = images({name: title}, {name: tax_alt_text(document)})
    return {
        "pairwise": {**pairwise_section(document), "figure": matrix},
        "ratings": ratings_section(document),
        "length": length_section(document),
        "tax": tax,
        "quality": quality_section(document),
        "power": power_section(document),
    }
