"""The interactive figures of training: curves of the arms, and the reward model's calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from betaflow.config import Method
from betaflow.report.estimates import Row
from betaflow.report.methods import LABELS
from betaflow.report.plots import CURVES, Metrics, running_mean
from betaflow.report.vega import Spec, axis, by_arm, dashed, faded, figure, panel, series, tips

POINTS = 800  # of a panel of training curves, all arms together


def training(rows: Sequence[Row], metrics: Metrics, method: Method) -> Spec:
    """A panel a metric of a method's training, a line an arm: running means, thinned out."""
    arms = list(dict.fromkeys(row["arm"] for row in rows if row["method"] == method))
    names = series(rows, arms)
    when = "iteration" if method in ("ppo", "ppo_gt") else "optimizer step"
    panels = []
    for metric, title in CURVES[method].items():
        values = []
        for arm in arms:
            found = [r for r in metrics.get(arm, ()) if isinstance(r.get(metric), int | float)]
            raw = np.array([row[metric] for row in found], dtype=float)
            smooth = running_mean(raw, max(1, len(raw) // 25))
            for at in thinned(len(found), POINTS // len(arms)):
                if np.isfinite(smooth[at]):
                    values.append(
                        {"arm": arm, "series": names[arm], "step": found[at]["step"]}
                        | {"value": float(f"{smooth[at]:.4g}")}
                    )
        x, y = axis("step", when), axis("value", title)
        shown = {"arm": "arm", "step": when, "value": f"{title}, running mean"}
        layers = [
            {
                "mark": {"type": "line", "strokeWidth": 1.8, "aria": False},
                "encoding": {"x": x, "y": y, "color": by_arm(arms),
                             "strokeDash": dashed(rows, arms), "opacity": faded(1.0)},
            },
            {
                "mark": {"type": "point", "size": 60, "opacity": 0, "filled": True, "aria": False},
                "encoding": {"x": x, "y": y, "color": by_arm(arms), "tooltip": tips(shown)},
            },
        ]  # fmt: skip
        description = f"{title} of the {LABELS[method]} arms over their training."
        panels.append(panel(title, description, values, layers))
    return figure(rows, arms, panels)


def reward_model(found: Mapping[str, Any]) -> Spec:
    """The reward model's calibration curve, and a histogram of its margins."""
    edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
    bins = [
        b | {"told": f"{b['accuracy']:.1%} [{b['low']:.1%}, {b['high']:.1%}]"}
        for b in found["bins"]
    ]
    bars = [
        {"from": low, "to": high, "count": count}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    x = axis("confidence", "its confidence, σ(|margin|)", domain=[0.5, 1])
    y = axis("accuracy", "share of pairs it orders as labelled")
    shown = {"confidence": "confidence", "told": "accuracy", "pairs": "pairs"}
    diagonal = [{"confidence": 0.5, "accuracy": 0.5}, {"confidence": 1, "accuracy": 1}]
    curve = [
        {"data": {"values": diagonal}, "mark": {"type": "line", "style": "half"},
         "encoding": {"x": x, "y": y}},
        {"mark": {"type": "rule", "style": "accent"},
         "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}}},
        {"mark": {"type": "line", "style": "accent", "point": {"style": "accent"}},
         "encoding": {"x": x, "y": y, "tooltip": tips(shown)}},
    ]  # fmt: skip
    margins = {"from": "margin from", "to": "to", "count": "pairs"}
    histogram = [
        {"mark": {"type": "bar", "style": "accent"},
         "encoding": {"x": axis("from", "score of the chosen less the rejected")
                      | {"bin": "binned"},
                      "x2": {"field": "to"}, "y": axis("count", "pairs"),
                      "tooltip": tips(margins)}},
    ]  # fmt: skip
    pairs = f"{found['pairs']} held-out pairs"
    panels = [
        panel("As often right as it is sure?", f"Calibration curve over {pairs}.", bins, curve),
        panel("Margins of held-out pairs", f"Histogram over {pairs}.", bars, histogram),
    ]
    return {"series": [], "colours": {"light": [], "dark": []}, "panels": panels}


def thinned(count: int, most: int) -> list[int]:
    """At most so many of the indices from 0, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(at) for at in np.linspace(0, count - 1, max(most, 2)).tolist()})
