"""The comparison's figures: reward against KL, win rate against temperature, training curves.

Hue and marker tell the method (`methods.py`), lightness the arm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from betaflow.config import Method
from betaflow.report.canvas import new_figure, save
from betaflow.report.estimates import Row
from betaflow.report.headline import Document
from betaflow.report.methods import LABELS, LOOKS, colours, label, setting
from betaflow.report.reward_plot import alt_text as reward_alt_text
from betaflow.report.reward_plot import reward_model_figure

DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1))]
PAIR_CURVES = {
    "loss": "loss (nats a pair)",
    "rewards/margin": "reward margin (nats)",
    "rewards/accuracy": "reward accuracy",
}
CURVES: dict[str, dict[str, str]] = {  # by method, the metrics of its training that are drawn
    "dpo": PAIR_CURVES,
    "ipo": PAIR_CURVES | {"loss": "loss"},
    "slic": PAIR_CURVES | {"loss": "loss"},
    "online_dpo": {"reward/score": "gold reward", "log_ratio": "KL from SFT (nats)"},
    "preferred_ft": PAIR_CURVES,
    "unlikelihood": PAIR_CURVES,
    "ppo": {"reward/score": "reward model's score", "kl": "KL from SFT (nats)"},
    "ppo_gt": {"reward/score": "gold reward", "kl": "KL from SFT (nats)"},
}
# By method, what its arms are joined in the order of.
SWEPT = dict.fromkeys(("dpo", "ipo", "slic", "online_dpo", "ppo", "ppo_gt"), "beta")
SWEPT |= {"unlikelihood": "alpha", "best_of_n": "n"}
# By judge, the score that is drawn.
REWARDS = {"gold": "gold reward", "reward_model": "reward model's score"}
REWARDS["llm"] = REWARDS["reward_model"]

Metrics = Mapping[str, Sequence[Mapping[str, Any]]]


def write_plots(document: Document, metrics: Metrics, folder: Path) -> None:
    """Write every plot as PNG into `folder`.

    Args:
        document: `estimates.json`.
        metrics: by arm name, the rows of its `metrics.jsonl`.
        folder: an existing folder.
    """
    rows: list[Row] = document["rows"]
    draw: dict[str, Callable[[], Figure]] = {
        "reward_kl": lambda: reward_against_kl(rows, document["judge"]),
        "win_rate": lambda: win_rates(rows, document["ppo_arm"]),
    }
    for method in trained(rows):
        draw[f"training_{method}"] = partial(training_curves, rows, metrics, method)
    if document["reward_model"] is not None:
        draw["reward_model"] = partial(reward_model_figure, document["reward_model"])
    for name, figure in draw.items():
        save(figure, folder / f"{name}.png")


def titles(document: Document) -> dict[str, str]:
    """By plot name, the title of each plot, in the page's order."""
    found = {"reward_kl": "Reward against KL", "win_rate": "Win rate against temperature"}
    for method in trained(document["rows"]):
        found[f"training_{method}"] = f"Training of the {LABELS[method]} arms"
    if document["reward_model"] is not None:
        found["reward_model"] = "The reward model on held-out pairs"
    return found


def trained(rows: Sequence[Row]) -> list[Method]:
    """The methods among the rows whose training is drawn."""
    found = {row["method"] for row in rows}
    return [method for method in LABELS if method in found and method in CURVES]


def reward_against_kl(rows: Sequence[Row], judge: str) -> Figure:
    """What each arm pays in KL for its reward, at T = 1, with intervals both ways."""
    reward = "gold_reward" if judge == "gold" else "reward_model"
    points = [row for row in rows if row["temperature"] == 1.0 and row[reward] is not None]
    shades = colours(rows)
    figure, (axes,) = new_figure(7.6, 4.4)
    for line in sweeps(points):
        values = [r["kl"] for r in line], [r[reward] for r in line]
        axes.plot(*values, color=LOOKS[label(line[0])].first, alpha=0.4, zorder=1)
    for row in points:
        if row["kl"] is None:
            continue
        axes.errorbar(
            row["kl"],
            row[reward],
            xerr=bars(row, "kl"),
            yerr=bars(row, reward),
            color=shades[row["arm"]],
            marker=LOOKS[label(row)].marker,
            markersize=7,
            capsize=2.5,
            linewidth=1.2,
        )
        # PPO's point goes to the other side, since PPO often lies on DPO's line.
        offset, side = ((-7, 7), "right") if row["method"] == "ppo" else ((8, -13), "left")
        place = (row["kl"], row[reward])
        axes.annotate(setting(row), place, offset, textcoords="offset points", ha=side, fontsize=9)
    axes.margins(x=0.12, y=0.15)
    axes.set_xlabel(r"KL(π ‖ π$_\mathrm{ref}$), nats a completion, T = 1")
    axes.set_ylabel(f"{REWARDS[judge]}, mean, T = 1")
    figure.legend(handles=method_handles(points, shades), loc="outside right upper")
    return figure


def win_rates(rows: Sequence[Row], baseline: str | None) -> Figure:
    """Win rate against SFT and against PPO at each temperature, with interval bands."""
    panels = {"win_rate_vs_sft": "win rate against SFT"}
    if baseline is not None:
        panels["win_rate_vs_ppo"] = f"win rate against PPO\n({baseline})"
    shades = colours(rows)
    figure, grid = new_figure(4.6 * len(panels), 4.4, len(panels))
    for axes, (name, title) in zip(grid, panels.items(), strict=True):
        axes.axhline(0.5, color="#555555", linewidth=1, linestyle=":")
        for arm, own in _by_arm(rows).items():
            if arm == name.removeprefix("win_rate_vs_") or (arm == baseline and "ppo" in name):
                continue  # against itself: one half, the dotted line
            _band(axes, own, name, shades[arm], _dash(rows, arm))
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("sampling temperature")
        axes.set_xticks(sorted({row["temperature"] for row in rows}))
        axes.set_ylim(-0.02, 1.02)
    grid[0].set_ylabel("share of prompts won (a tie is half)")
    handles = _arm_handles(rows, shades, list(_by_arm(rows)))
    figure.legend(handles=handles, loc="outside right upper", fontsize=8.5)
    return figure


def training_curves(rows: Sequence[Row], metrics: Metrics, method: Method) -> Figure:
    """A panel a metric, a line an arm of `method`: raw values faint, a running mean over them."""
    shades, curves = colours(rows), CURVES[method]
    names = [arm for arm, own in _by_arm(rows).items() if own[0]["method"] == method]
    figure, grid = new_figure(3.9 * len(curves) + 1.5, 3.4, len(curves))
    for axes, (metric, title) in zip(grid, curves.items(), strict=True):
        for arm in names:
            found = [r for r in metrics.get(arm, ()) if isinstance(r.get(metric), int | float)]
            steps = np.array([row["step"] for row in found], dtype=float)
            values = np.array([row[metric] for row in found], dtype=float)
            smooth = running_mean(values, max(1, len(values) // 25))
            axes.plot(steps, values, color=shades[arm], alpha=0.22, linewidth=0.8)
            axes.plot(steps, smooth, color=shades[arm], linestyle=_dash(rows, arm), linewidth=1.7)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("iteration" if method in ("ppo", "ppo_gt") else "optimizer step")
    figure.legend(
        handles=_arm_handles(rows, shades, names), loc="outside right upper", fontsize=8.5
    )
    return figure


def running_mean(values: np.ndarray, half_width: int) -> np.ndarray:
    """(N,) -> (N,): the mean of each value's neighbours, `half_width` each side, fewer at ends."""
    if len(values) == 0:
        return values
    totals = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low = np.maximum(index - half_width, 0)
    high = np.minimum(index + half_width + 1, len(values))
    means: np.ndarray = (totals[high] - totals[low]) / (high - low)
    return means


def sweeps(points: Sequence[Row]) -> list[list[Row]]:
    """Points joined in the order of their `_dial`: a line a method, learning rate and seed."""
    lines: dict[Any, list[Row]] = {}
    for row in points:
        if row["method"] in SWEPT and row["kl"] is not None:
            start, _ = _dial(row)
            lines.setdefault((label(row), row["learning_rate"], row["seed"], start), []).append(row)
    return [sorted(line, key=lambda row: _dial(row)[1]) for line in lines.values()]


def _dial(row: Row) -> tuple[float | None, float]:
    """The value of what is `SWEPT`; of PPO with a target KL that, beside the β it starts from."""
    value: float = row[SWEPT[row["method"]]]
    return (value, row["target_kl"]) if row.get("target_kl") else (None, value)


def bars(row: Row, name: str) -> np.ndarray | None:
    """(2, 1) lengths of an interval's arms, None where there is no interval."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low is None or high is None:
        return None
    return np.maximum([[row[name] - low], [high - row[name]]], 0.0)


def _band(axes: Axes, rows: Sequence[Row], name: str, colour: Any, dash: Any) -> None:
    def column(end: str) -> np.ndarray:
        return np.array([row[name + end] for row in rows], dtype=float)  # None -> NaN

    temperatures = [row["temperature"] for row in rows]
    marker = LOOKS[label(rows[0])].marker
    axes.plot(temperatures, column(""), color=colour, marker=marker, markersize=5, linestyle=dash)
    if len(rows) > 1:
        axes.fill_between(temperatures, column("_low"), column("_high"), color=colour, alpha=0.15)
    else:
        axes.vlines(temperatures, column("_low"), column("_high"), color=colour)


def _by_arm(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["arm"], []).append(row)
    return found


def _dash(rows: Sequence[Row], arm: str) -> Any:
    return DASHES[list(_by_arm(rows)).index(arm) % len(DASHES)]


def stroke(method: str, number: int) -> tuple[str, Any]:
    """Colour and dash of a method's line of that number, from 0, in a panel of its own."""
    again, dash = divmod(number, len(DASHES))
    return LOOKS[method].last if again else LOOKS[method].first, DASHES[dash]


def method_handles(points: Sequence[Row], shades: Mapping[str, Any]) -> list[Line2D]:
    """The legend's entry of each method among the points."""
    first = {label(row): shades[row["arm"]] for row in reversed(points)}
    return [
        Line2D([], [], color=first[name], marker=look.marker, linestyle="", label=name)
        for name, look in LOOKS.items()
        if name in first
    ]


def _arm_handles(
    rows: Sequence[Row], shades: Mapping[str, Any], names: Sequence[str]
) -> list[Line2D]:
    looks = {row["arm"]: LOOKS[label(row)] for row in rows}
    return [
        Line2D(
            [],
            [],
            color=shades[name],
            linestyle=_dash(rows, name),
            marker=looks[name].marker,
            markersize=5,
            label=name,
        )
        for name in names
    ]


def alt_texts(document: Document) -> dict[str, str]:
    """By plot name, what it shows, for readers who do not see it."""
    judge = REWARDS[document["judge"]]
    at_one = [r for r in document["rows"] if r["temperature"] == 1.0]
    reward = "gold_reward" if document["judge"] == "gold" else "reward_model"
    points = "; ".join(
        f"{row['arm']}: KL {row['kl']:.2f}, {judge} {row[reward]:.2f}"
        for row in at_one
        if row["kl"] is not None and row[reward] is not None
    )
    found = {
        "reward_kl": f"Scatter plot of {judge} against KL from SFT at T = 1. {points}.",
        "win_rate": "Line plots of each arm's win rate against SFT and against PPO at each "
        "sampling temperature, with interval bands. The numbers are in the table above.",
    }
    for method in trained(document["rows"]):
        count = len({row["arm"] for row in document["rows"] if row["method"] == method})
        arms = f"{count} {LABELS[method]} arm{'s' if count > 1 else ''}"
        what = ", ".join(CURVES[method].values())
        found[f"training_{method}"] = f"Training curves of {arms}: {what}."
    if document["reward_model"] is not None:
        found["reward_model"] = reward_alt_text(document["reward_model"])
    return found
