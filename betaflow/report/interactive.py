"""The page's interactive figures: one function a figure, from the same numbers as the static ones.

Every mark's tooltip says what it is, its value with its interval, and of how many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from betaflow.report import text
from betaflow.report.estimates import Row
from betaflow.report.frontier_plot import WIDEST
from betaflow.report.headline import Document
from betaflow.report.interactive_statistics import pairwise, tax, win_rate
from betaflow.report.interactive_training import reward_model, training
from betaflow.report.methods import SCORERS
from betaflow.report.pairwise_plot import pairwise_alt_text
from betaflow.report.plots import REWARDS, Metrics, alt_texts, sweeps, trained
from betaflow.report.tax_plot import has_differences, tax_alt_text
from betaflow.report.vega import (
    Spec,
    axis,
    by_arm,
    faded,
    figure,
    marks,
    panel,
    series,
    tips,
)

ENDS = ("", "_low", "_high")
LOOKS_TIPS = {"arm": "arm", "step": "step", "kl": "KL, nats", "reward": "reward"}


def figures(document: Document, frontier: Mapping[str, Any], metrics: Metrics) -> dict[str, Spec]:
    """By the name of the static figure that it stands for, every interactive one.

    Args:
        document: `estimates.json`.
        frontier: `frontier.json`.
        metrics: by arm name, the rows of its `metrics.jsonl`.
    """
    told = alt_texts(document)
    found = {
        "reward_kl": reward_kl(document, told["reward_kl"]),
        "win_rate": win_rate(document),
    }
    if frontier["optimum"] is not None:
        found["frontier"] = against_the_optimum(document, frontier)
    for method in trained(document["rows"]):
        found[f"training_{method}"] = training(document["rows"], metrics, method)
    found["pairwise"] = pairwise(document, pairwise_alt_text(document["pairwise"]))
    if has_differences(document["alignment_tax"]):
        found["alignment_tax"] = tax(document, tax_alt_text(document))
    if document["reward_model"] is not None:
        found["reward_model"] = reward_model(document["reward_model"])
    return found


def reward_kl(document: Document, description: str) -> Spec:
    """What each arm pays in KL for its reward, at T = 1."""
    reward = "gold_reward" if document["judge"] == "gold" else "reward_model"
    points = _points(document, reward)
    arms = [point["arm"] for point in points]
    lines = [
        {"series": points[arms.index(row["arm"])]["series"], "line": number, "arm": row["arm"]}
        | {"step": step, "kl": row["kl"], "reward": row[reward]}
        for number, line in enumerate(sweeps(_at_one(document, reward)))
        for step, row in enumerate(line)
    ]
    edge = _edge(points)
    name = REWARDS[document["judge"]]
    layers = [*_joined(lines, edge, name), *_ends(document, points, edge, name)]
    return figure(document["rows"], arms, [panel("", description, points, layers)])


def against_the_optimum(document: Document, frontier: Mapping[str, Any]) -> Spec:
    """The same with the closed-form optimum, Best-of-N and the way of each arm as it trained.

    Rewards and KLs are `frontier.json`'s, without the draws' luck.
    """
    own = {row["arm"]: row for row in frontier["arms"]}
    points = _points(document, "gold_reward", own)
    arms = [point["arm"] for point in points]
    names = series(document["rows"], arms)
    best, reward = frontier["optimum"], REWARDS["gold"]
    ends = [best["trusted_kl"], *(row["kl"] for row in frontier["best_of_n"])]
    edge = max(_edge(points), *(1.02 * kl for kl in ends if kl <= WIDEST))
    curve = [
        {"kl": kl, "reward": reward, "low": low, "high": high, "told": _told(reward, low, high)}
        for kl, reward, low, high in zip(
            *(best[name] for name in ("kl", "reward", "low", "high")), strict=True
        )
    ]
    several = [
        {"by": SCORERS[row["scorer"]], "n": row["n"], "kl": row["kl"], "reward": row["reward"]}
        | {"told": _told(row["reward"], row["reward_low"], row["reward_high"])}
        for row in frontier["best_of_n"]
    ]
    start = {"step": 0, "kl": 0.0, "reward": best["reference"]}
    looks = [
        {"arm": arm, "series": names[arm], **look}
        for arm, way in frontier["curves"].items()
        if arm in names
        for look in takewhile(lambda look: look["kl"] <= edge, (start, *way))
    ]
    x, y = axis("kl", "", domainMax=edge), axis("reward", "")
    line_tips = {"kl": "KL, nats", "told": f"{reward} of the optimum"}
    n_tips = {"n": "Best-of-N, N", "by": "chosen by", "kl": "KL, nats", "told": reward}
    layers = [
        {
            "data": {"values": curve},
            "mark": {"type": "area", "style": "ink", "opacity": 0.13, "clip": True},
            "encoding": {"x": x, "y": axis("low", ""), "y2": {"field": "high"}},
        },
        {
            "data": {"values": curve},
            "mark": {
                "type": "line",
                "style": "ink-line",
                "clip": True,
                "point": {"opacity": 0, "size": 60},
            },
            "encoding": {"x": x, "y": y, "tooltip": tips(line_tips)},
        },
        {
            "data": {"values": several},
            "mark": {
                "type": "line",
                "style": "soft-line",
                "clip": True,
                "point": {"style": "soft-point"},
            },
            "encoding": {"x": x, "y": y, "detail": {"field": "by"}, "tooltip": tips(n_tips)},
        },
        *_ways(document["rows"], arms, looks, x, y),
        *_ends(document, points, edge, reward),
    ]
    description = (
        f"Reward against KL with the closed-form optimum, which rises from {best['reward'][0]:.2f} "
        f"to {best['reward'][-1]:.2f} at {best['trusted_kl']:.2f} nats."
    )
    return figure(document["rows"], arms, [panel("", description, points, layers)])


def _at_one(document: Document, reward: str) -> list[Row]:
    rows: list[Row] = document["rows"]
    return [r for r in rows if r["temperature"] == 1.0 and None not in (r["kl"], r[reward])]


def _points(document: Document, reward: str, own: Mapping[str, Row] | None = None) -> list[Spec]:
    """Every arm at T = 1; one whose KL lies beyond the axis stands at its end, and says so.

    Args:
        own: by arm name, `kl` and `reward` with their ends, to be told instead of the document's.
    """
    rows = _at_one(document, reward)
    if own is not None:
        ends = [("kl", "kl"), ("reward", reward)]
        rows = [
            row | {f"{to}{end}": own[row["arm"]][f"{of}{end}"] for of, to in ends for end in ENDS}
            for row in rows
        ]
    names = series(document["rows"], [row["arm"] for row in rows])
    widest = 1.05 * max([row["kl_high"] or row["kl"] for row in rows if _near(row)], default=WIDEST)
    found = []
    for row in rows:
        point = {"arm": row["arm"], "series": names[row["arm"]], "of": _of(row)}
        point |= {f"reward{end}": row[f"{reward}{end}"] for end in ("", "_low", "_high")}
        if _near(row):
            point |= {name: row[name] for name in ("kl", "kl_low", "kl_high")}
        else:
            point |= {"kl": widest or 1.0, "beyond": f"KL {row['kl']:.0f} →"}
        point |= {
            "kl_told": text.on_a_line(row, "kl", 2),
            "reward_told": text.on_a_line(row, reward, 2),
        }
        wins = text.on_a_line(row, "win_rate_vs_sft", 1, 100.0, "%")
        found.append(point | {"wins": f"{wins} of {row['win_rate_vs_sft_verdicts']} verdicts"})
    return found


def _near(row: Row) -> bool:
    """Whether an arm's KL lies on the axis."""
    return (row["kl_high"] or row["kl"]) <= WIDEST


def _edge(points: Sequence[Spec]) -> float:
    """The end of the KL axis."""
    return 1.02 * max([p.get("kl_high") or p["kl"] for p in points], default=1.0) or 1.0


def _ends(document: Document, points: Sequence[Spec], edge: float, reward: str) -> list[Spec]:
    """Points with intervals both ways."""
    rows, arms = document["rows"], [point["arm"] for point in points]
    x = axis("kl", "KL(π ‖ π_ref), nats a completion, T = 1", domainMin=0, domainMax=edge)
    y = axis("reward", f"{reward}, mean, T = 1")
    shade = {"color": by_arm(arms), "opacity": faded(0.9)}
    shown = {"arm": "arm", "reward_told": reward, "kl_told": "KL, nats"}
    shown |= {"wins": "wins vs SFT", "of": "of"}
    low, high = ({"field": f"kl_{end}"} for end in ("low", "high"))
    return [
        {
            "mark": {"type": "rule", "aria": False},
            "encoding": {"x": x | low, "x2": high, "y": y, **shade},
        },
        {
            "mark": {"type": "rule", "aria": False},
            "encoding": {"x": x, "y": y | {"field": "reward_low"}, "y2": {"field": "reward_high"}}
            | shade,
        },
        marks(rows, arms, x, y, shown),
        *_beyond(points, x, y),
    ]


def _beyond(points: Sequence[Spec], x: Spec, y: Spec) -> list[Spec]:
    """What is written beside the points whose KL lies beyond the axis."""
    values = [point for point in points if "beyond" in point]
    mark = {"type": "text", "style": "note", "align": "right", "dx": -9}
    encoding = {"x": x, "y": y, "text": {"field": "beyond"}, "opacity": faded(1.0)}
    return [{"data": {"values": values}, "mark": mark, "encoding": encoding}] if values else []


def _ways(
    rows: Sequence[Row], arms: Sequence[str], looks: Sequence[Spec], x: Spec, y: Spec
) -> list[Spec]:
    """A thin line through the looks at each arm while it trained; nothing without looks."""
    encoding = {
        "x": x,
        "y": y,
        "order": {"field": "step", "type": "quantitative"},
        "color": by_arm(arms),
        "opacity": faded(0.55, 0.03),
        "tooltip": tips(LOOKS_TIPS),
    }
    mark = {"type": "line", "strokeWidth": 1, "point": {"size": 14, "aria": False}, "aria": False}
    return [{"data": {"values": list(looks)}, "mark": mark, "encoding": encoding}] if looks else []


def _joined(values: Sequence[Spec], edge: float, reward: str) -> list[Spec]:
    """A thin line through the points of each `line`, by `step`; nothing without points."""
    mark: Spec = {"type": "line", "style": "way", "clip": True, "aria": False}
    encoding: Spec = {
        "x": axis("kl", "", domainMin=0, domainMax=edge),
        "y": axis("reward", f"{reward}, mean, T = 1"),
        "detail": {"field": "line"},
        "order": {"field": "step", "type": "quantitative"},
        "opacity": faded(0.55, 0.03),
    }
    return (
        [{"data": {"values": list(values)}, "mark": mark, "encoding": encoding}] if values else []
    )


def _told(value: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"{value:.2f}"
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _of(row: Row) -> str:
    return f"{row['prompts']} prompts, {row['samples']} samples"
