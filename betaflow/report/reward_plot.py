"""The reward model on held-out pairs: is it as often right as it is sure, and by what margins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from betaflow.report.canvas import new_figure

COLOUR = "#2a6f97"


def reward_model_figure(found: Mapping[str, Any]) -> Figure:
    """A calibration curve with intervals, and a histogram of the margins.

    Args:
        found: what `betaflow.evaluation.calibration` gives.
    """
    figure, (left, right) = new_figure(8.4, 3.6, 2)
    bins = found["bins"]
    sure, accuracy = ([b[key] for b in bins] for key in ("confidence", "accuracy"))
    below = [max(b["accuracy"] - b["low"], 0.0) for b in bins]
    above = [max(b["high"] - b["accuracy"], 0.0) for b in bins]
    left.plot([0.5, 1], [0.5, 1], color="#555555", linewidth=1, linestyle=":")
    left.errorbar(sure, accuracy, [below, above], color=COLOUR, marker="o", markersize=4)
    left.set_title("as often right as it is sure?", fontsize=10)
    left.set_xlabel("its confidence, σ(|margin|)")
    left.set_ylabel("share of pairs it orders as labelled")
    edges = np.array(found["histogram"]["edges"])
    counts = found["histogram"]["counts"]
    right.bar(edges[:-1], counts, np.diff(edges), align="edge", color=COLOUR)
    right.axvline(0.0, color="#555555", linewidth=1, linestyle=":")
    right.set_title("margins of held-out pairs", fontsize=10)
    right.set_xlabel("score of the chosen less the rejected")
    right.set_ylabel("pairs")
    return figure


def alt_text(found: Mapping[str, Any]) -> str:
    """What the figure shows, for readers who do not see it."""
    return (
        f"Calibration curve and histogram of margins of the reward model on {found['pairs']} "
        f"held-out pairs: accuracy {100 * found['accuracy']:.1f} % [{100 * found['low']:.1f}, "
        f"{100 * found['high']:.1f}], loss {found['loss']:.3f} nats, "
        f"expected calibration error {100 * found['expected_calibration_error']:.1f} %."
    )
