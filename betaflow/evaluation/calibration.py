"""Does a reward model's margin say how sure it may be? Held-out accuracy, calibration, margins.

A Bradley-Terry model that gives a pair the margin m = r_w - r_l gives its preferred side the
probability sigma(|m|). Of the pairs with like |m| that share should be right (Guo et al. 2017).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from betaflow.evaluation.bootstrap import design_effect
from betaflow.evaluation.win_rate import wilson

BINS = 10
HISTOGRAM = 40


def calibration(
    margins: ArrayLike, clusters: ArrayLike | None = None, *, confidence: float = 0.95
) -> dict[str, Any]:
    """Held-out figures of a reward model.

    Args:
        margins: (pairs,) score of the chosen less that of the rejected completion, finite.
        clusters: (pairs,) labels, such as prompts, of which several pairs may be; None: every pair
            stands alone.
        confidence: of the intervals (Wilson's, of as many pairs as the design effect leaves).

    Returns:
        `pairs`; `accuracy` (a margin of 0 counts half) with `low` and `high`; `loss` (mean
        -log sigma(m), nats);
        `expected_calibration_error` (mean over pairs of |confidence - accuracy| of their bin);
        `bins`, equally many pairs each, by rising confidence: `confidence`, `accuracy` with
        `low` and `high`, `pairs`; `histogram` of the margins: `edges` (one more than `counts`).

    Raises:
        ValueError: there is no pair, a margin is not finite, or there are not as many clusters.
    """
    found = np.asarray(margins, dtype=np.float64)
    if found.ndim != 1 or len(found) == 0 or not np.isfinite(found).all():
        raise ValueError("margins must be a non-empty list of finite numbers")
    labels = np.arange(len(found)) if clusters is None else np.asarray(clusters)
    right = np.where(found > 0, 1.0, np.where(found < 0, 0.0, 0.5))
    sure = 1 / (1 + np.exp(-np.abs(found)))
    order = np.argsort(sure, kind="stable")
    bins = []
    for part in np.array_split(order, min(BINS, len(found))):
        accuracy = float(right[part].mean())
        low, high = _interval(right[part], labels[part], confidence)
        bins.append(
            {
                "confidence": float(sure[part].mean()),
                "accuracy": accuracy,
                "low": low,
                "high": high,
                "pairs": len(part),
            }
        )
    counts, edges = np.histogram(found, bins=HISTOGRAM)
    gaps = [abs(b["confidence"] - b["accuracy"]) * b["pairs"] for b in bins]
    low, high = _interval(right, labels, confidence)
    return {
        "pairs": len(found),
        "accuracy": float(right.mean()),
        "low": low,
        "high": high,
        "loss": float(np.logaddexp(0, -found).mean()),
        "expected_calibration_error": sum(gaps) / len(found),
        "bins": bins,
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _interval(
    right: NDArray[np.float64], clusters: NDArray[Any], confidence: float
) -> tuple[float, float]:
    return wilson(float(right.mean()), len(right) / design_effect(right, clusters), confidence)
