"""The figure of reward and KL against the share of prompts that are labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, PercentFormatter

from betaflow.config import UnlabelledMethod
from betaflow.report.canvas import new_figure
from betaflow.report.estimates import KL_TEMPERATURE, Row
from betaflow.report.methods import LOOKS, Look
from betaflow.report.plots import REWARDS, bars

Document = Mapping[str, Any]


class Line(NamedTuple):
    """A method in words, how it looks, and how far its points are moved aside."""

    label: str
    look: Look
    aside: float  # a factor of the share: points at one share lie beside each other


LINES: dict[UnlabelledMethod, Line] = {
    "dpo": Line("DPO, kept pairs alone", LOOKS["DPO"], 0.955),
    # Looks of methods that are not in this figure, told apart as those are.
    "dpo_reward_model": Line("DPO, and fresh pairs by\nthe reward model", LOOKS["IPO"], 0.985),
    "dpo_implicit": Line("DPO, and fresh pairs by\nthe implicit reward", LOOKS["SLiC"], 1.015),
    "ppo": Line("PPO on all prompts, by\nthe reward model", LOOKS["PPO"], 1.045),
}
PANELS = {  # by column
    "reward": "in-domain prompts",
    "reward_ood": "prompts of the second domain",
    "kl": "in-domain prompts",
}


def draw_unlabelled(document: Document) -> Figure:
    """Reward in each domain, and KL: a line a method, SFT across; means at T = 1, with intervals.

    Small marks are the training seeds.

    Args:
        document: `unlabelled.json`, with at least one policy.
    """
    rows = [row for row in document["rows"] if row["temperature"] == KL_TEMPERATURE]
    panels = {name: title for name, title in PANELS.items() if rows[0][name] is not None}
    reward = REWARDS[document["reward"].removesuffix("_reward")]
    figure, grid = new_figure(3.3 * len(panels) + 2.2, 4.0, len(panels))
    for axes, (name, title) in zip(grid, panels.items(), strict=True):
        if name == "kl":
            axes.set_ylabel(r"KL(π ‖ π$_\mathrm{ref}$), nats a completion, T = 1")
        else:
            _reference(axes, document["sft"], name)
            axes.set_ylabel(f"{reward}, mean, T = 1")
        for method, line in LINES.items():
            own = [row for row in rows if row["method"] == method]
            seeds = [arm for arm in document["arms"] if arm["method"] == method]
            _line(axes, own, seeds, line, name)
        axes.set_xscale("log")
        shares = sorted({row["labelled"] for row in rows})
        axes.set_xticks(shares)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("share of prompts that keep their labels")
    figure.legend(handles=_handles(), loc="outside right upper", fontsize=8.5)
    return figure


def alt_text(document: Document) -> str:
    """What the figure shows, for readers who do not see it."""
    reward = REWARDS[document["reward"].removesuffix("_reward")]
    told = []
    for row in document["rows"]:
        if row["temperature"] == KL_TEMPERATURE:
            name = LINES[row["method"]].label.replace("\n", " ")
            outside = row["reward_ood"]
            beyond = "" if outside is None else f", in the second domain {outside:.2f}"
            told.append(
                f"{name}, {row['labelled']:.0%} labelled: {row['reward']:.2f}{beyond}, "
                f"KL {row['kl']:.2f}"
            )
    return (
        f"Line plots of {reward} and of KL at T = 1 against the share of labelled prompts, a line "
        "a method. " + "; ".join(told) + "."
    )


def _reference(axes: Axes, rows: Sequence[Row], name: str) -> None:
    (own,) = [row for row in rows if row["temperature"] == KL_TEMPERATURE]
    colour = LOOKS["SFT"].first
    axes.axhline(own[name], color=colour, linewidth=1.2, linestyle=(0, (4, 2)))
    if own[f"{name}_low"] is not None:
        axes.axhspan(own[f"{name}_low"], own[f"{name}_high"], color=colour, alpha=0.12)


def _line(axes: Axes, rows: Sequence[Row], seeds: Sequence[Row], line: Line, name: str) -> None:
    colour, marker = line.look.first, line.look.marker
    ordered = sorted(rows, key=lambda row: row["labelled"])
    places = [row["labelled"] * line.aside for row in ordered]
    axes.plot(places, [row[name] for row in ordered], color=colour, linewidth=1.2)
    for place, row in zip(places, ordered, strict=True):
        axes.errorbar(
            place, row[name], yerr=bars(row, name), color=colour, marker=marker, markersize=6.5,
            capsize=2.5, linewidth=1.2,
        )  # fmt: skip
    axes.scatter(
        np.array([arm["labelled"] for arm in seeds]) * line.aside,
        [arm[name] for arm in seeds],
        color=colour, marker=marker, s=9, alpha=0.45, linewidths=0, zorder=3,
    )  # fmt: skip


def _handles() -> list[Line2D]:
    handles = [
        Line2D([], [], color=line.look.first, marker=line.look.marker, label=line.label)
        for line in LINES.values()
    ]
    dashed = Line2D([], [], color=LOOKS["SFT"].first, linestyle=(0, (4, 2)), label="SFT")
    seed = Line2D([], [], color="#999999", marker="o", markersize=3, linestyle="", label="a seed")
    return [*handles, dashed, seed]
