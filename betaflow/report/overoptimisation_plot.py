"""The figures of over-optimisation: rewards, drift and the second gold score against the KL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from betaflow.evaluation.optimum import Array
from betaflow.evaluation.overoptimisation import reward_at
from betaflow.report.canvas import new_figure
from betaflow.report.curves import ENDS
from betaflow.report.estimates import Row
from betaflow.report.methods import LOOKS, colours, label, setting
from betaflow.report.overoptimisation import GOLD_TRAINED

DISTANCE = r"√KL(π ‖ π$_\mathrm{ref}$), nats$^{1/2}$"
INK = "#1b1f24"
BEST_OF_N = "Best-of-N (reward model)"
SCALED, OWN = (0, (4, 1.5)), (0, (1, 1.2))  # line styles of proxies
STYLES: dict[str, Any] = {"reward_model": SCALED, "gold_reward": SCALED, "implicit": OWN}
FITS: dict[str, Any] = {"rl": "-", "bon": (0, (3, 2))}
LAWS = {"rl": "fit d(α − β log d)", "bon": "fit d(α − β d)"}
REWARDS = {"gold_reward": "gold", "second_gold": "second gold"}

Document = Mapping[str, Any]


def figures(document: Document) -> dict[str, tuple[Callable[[], Figure], str]]:
    """By file name, each figure that the document has data for, and what it shows in words."""
    if not document["groups"]:
        return {}
    found: dict[str, tuple[Callable[[], Figure], str]] = {
        "overoptimisation.png": (partial(draw_rewards, document), rewards_text(document)),
        "drift.png": (partial(draw_drift, document), drift_text(document)),
    }
    if document["second_gold"] is not None:
        found["second_gold.png"] = (partial(draw_second, document), second_text(document))
    return found


def draw_rewards(document: Document) -> Figure:
    """A panel a method: the judge's gain and the proxies', the fits, and where the judge's peaks.

    Args:
        document: `overoptimisation.json`.
    """
    panels = _panels(document)
    rows = -(-len(panels) // 3)
    across = min(len(panels), 3)
    figure, grid = new_figure(3.3 * across + 0.4, 3.0 * rows + 0.7, len(panels), rows)
    shades = _shades(document)
    for axes, (method, groups) in zip(grid, panels.items(), strict=True):
        for group in groups:
            _gains(axes, group, document["start"], shades[group["name"]])
        axes.axhline(0, color="#999999", linewidth=0.8, zorder=1)
        axes.set_title(method, fontsize=10)
        axes.set_xlabel(DISTANCE)
        axes.margins(x=0.02)
        words = [(setting(group), shades[group["name"]]) for group in groups]
        handles = [Line2D([], [], color=shade, label=word) for word, shade in words if word]
        if handles:
            axes.legend(handles=handles, fontsize=8, loc="best")
    for axes in grid[::across]:
        axes.set_ylabel("gain over the start")
    figure.legend(handles=_styles(document), loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


def draw_drift(document: Document) -> Figure:
    """Length and entropy of the draws, means over seeds, on the way from the reference."""
    figure, grid = new_figure(9.2, 3.8, 2)
    panels = {"completion_tokens": "tokens a completion", "entropy": "entropy, nats a token"}
    shades = _shades(document)
    for axes, (name, title) in zip(grid, panels.items(), strict=True):
        axes.axhline(document["start"][name], color=INK, linewidth=0.9, linestyle=":")
        for group in document["groups"]:
            looks = group["curve"]
            _way(axes, [r["d"] for r in looks], [r[name] for r in looks], group, shades)
        axes.set_xlabel(DISTANCE)
        axes.set_ylabel(title)
    figure.legend(handles=_names(document, shades), loc="outside right upper", fontsize=8.5)
    return figure


def draw_second(document: Document) -> Figure:
    """What the second gold score makes of the gold reward's gains; PPO-GT's, and others' faintly.

    On the dotted line both scores gain alike.
    """
    figure, (axes,) = new_figure(6.6, 4.2)
    shades = _shades(document)
    axes.axline((0, 0), slope=1, color=INK, linewidth=0.9, linestyle=":")
    for group in document["groups"]:
        faint = group["method"] not in GOLD_TRAINED
        for looks in _looks(document, group):
            gold, second = ([r[f"{n}_gain"] for r in looks] for n in ("gold_reward", "second_gold"))
            _way(axes, gold, second, group, shades, alpha=0.3 if faint else 1.0)
    axes.set_xlabel("gold reward's gain over the start")
    axes.set_ylabel("second gold score's gain")
    figure.legend(handles=_names(document, shades), loc="outside right upper", fontsize=8.5)
    return figure


def rewards_text(document: Document) -> str:
    """What the figure of the rewards shows, for readers who do not see it."""
    parts = ["Line plots of the gain in reward against √KL, a panel a method."]
    parts += map(peak, document["groups"])
    if document["best_of_n"] is not None:
        last = document["best_of_n"]["curve"][-1]
        gained = f"gold gains {last['gold_reward_gain']:.2f} at n = {last['n']}"
        parts.append(f"{BEST_OF_N}: {gained}, KL {last['kl']:.2f}.")
    return " ".join(parts)


def drift_text(document: Document) -> str:
    """What the figure of the drift shows, for readers who do not see it."""
    start = document["start"]
    ends = _ends(document, "{completion_tokens:.1f} tokens, {entropy:.2f} nats, KL {kl:.2f}")
    return (
        "Line plots of tokens a completion and of entropy a token against √KL. The start: "
        f"{start['completion_tokens']:.1f} tokens, {start['entropy']:.2f} nats. At the end, {ends}."
    )


def second_text(document: Document) -> str:
    """What the figure of the second gold score shows, for readers who do not see it."""
    ends = _ends(document, "gold {gold_reward_gain:.2f}, second {second_gold_gain:.2f}")
    return (
        "Line plot of the second gold score's gain against the gold reward's while the arms "
        f"trained, with the line on which they are equal. At the end, {ends}."
    )


def _ends(document: Document, told: str) -> str:
    """Of each group what `told` says, by the columns of its last look."""
    return "; ".join(f"{g['name']}: {told.format(**g['curve'][-1])}" for g in document["groups"])


def peak(group: Row) -> str:
    """A sentence on where a group's judge peaks, and what is lost after."""
    found, last = group["gold_peak"], group["curve"][-1]
    if found["reason"]:
        return (
            f"{group['name']}: KL {last['kl']:.2f} at the end; no peak is told: {found['reason']}."
        )
    return (
        f"{group['name']}: {REWARDS[group['judge']]} peaks at step {found['step']:g}, KL "
        f"{found['kl']:.2f}, with a gain of {found['reward']:.2f}; {found['decline']:.2f} "
        f"[{found['decline_low']:.2f}, {found['decline_high']:.2f}] of it is lost by the end, "
        f"KL {last['kl']:.2f}."
    )


def _panels(document: Document) -> dict[str, list[Row]]:
    """By title, the groups of each panel; the last is Best-of-N's."""
    found: dict[str, list[Row]] = {}
    for group in document["groups"]:
        found.setdefault(label(group), []).append(group)
    best = document["best_of_n"]
    if best is not None:
        found[BEST_OF_N] = [_as_group(best)]
    return found


def _as_group(best: Row) -> Row:
    about = {"name": BEST_OF_N, "method": "best_of_n", "scorer": "reward_model"}
    return {**best, **about, "judge": "gold_reward", "proxies": ["reward_model"]}


def _shades(document: Document) -> dict[str, Any]:
    """By group's name, its colour: one for all its seeds."""
    groups = [group for own in _panels(document).values() for group in own]
    return colours([{**group, "arm": group["name"]} for group in groups])


def _gains(axes: Axes, group: Row, start: Row, shade: Any) -> None:
    """The judge's gain with its band, the proxies' gains, the fits and the peak, of one group."""
    rows = group["curve"]
    d = _column(rows, "d")
    for name in group["proxies"]:
        factor = start["reward_model_scale"] if name == "reward_model" else None
        values = _column(rows, f"{name}_gain") * (factor or 1.0)
        axes.plot(d, values, color=shade, linestyle=STYLES[name], linewidth=1.2)
    if group["reason"]:  # no judge
        return
    gain, low, high = (_column(rows, f"{group['judge']}_gain{end}") for end in ENDS)
    axes.plot(d, gain, color=shade, linewidth=1.8, zorder=3)
    axes.fill_between(d, low, high, color=shade, alpha=0.15, linewidth=0)
    for found in group["fits"]:
        if found["alpha"] is not None:
            along = np.linspace(0, d.max(), 200)
            law = reward_at(along, found["alpha"], found["beta"], found["form"])
            axes.plot(along, law, color=INK, linewidth=0.7, linestyle=FITS[found["form"]], zorder=4)
    if not group["gold_peak"]["reason"]:
        _mark(axes, group, shade)


def _column(rows: Sequence[Row], name: str) -> Array:
    """(rows,) values, NaN where there is none."""
    return np.array([row[name] for row in rows], dtype=np.float64)


def _mark(axes: Axes, group: Row, shade: Any) -> None:
    """The peak, filled where the fall after it is more than chance."""
    found = group["gold_peak"]
    axes.plot(
        found["d"],
        found["highest"],
        color=shade,
        marker=LOOKS[label(group)].marker,
        markersize=8,
        markerfacecolor=shade if found["decline_low"] > 0 else "white",
        markeredgecolor=INK,
        clip_on=False,
        zorder=5,
    )


def _looks(document: Document, group: Row) -> list[list[Row]]:
    """The looks at each arm of a group."""
    return [[row for row in document["looks"] if row["arm"] == name] for name in group["arms"]]


def _way(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    group: Row,
    shades: Mapping[str, Any],
    alpha: float = 0.85,
) -> None:
    """One arm's way, its end marked."""
    shade = shades[group["name"]]
    axes.plot(x, y, color=shade, linewidth=1.1, alpha=alpha)
    axes.plot(x[-1], y[-1], color=shade, marker=LOOKS[label(group)].marker, alpha=alpha)


def _names(document: Document, shades: Mapping[str, Any]) -> list[Line2D]:
    return [
        Line2D([], [], color=shades[g["name"]], marker=LOOKS[label(g)].marker, label=g["name"])
        for g in document["groups"]
    ]


def _styles(document: Document) -> list[Line2D]:
    """The legend's entries of what is alike in all panels."""
    plain: dict[str, Any] = {"color": "#666666"}
    if document["start"]["reward_model_scale"] is None:
        return [
            Line2D([], [], **plain, linestyle=SCALED, label="reward model's score"),
            Line2D([], [], **plain, linestyle=OWN, label="implicit reward"),
        ]
    handles = [
        Line2D([], [], **plain, linewidth=1.8, label="gold reward (PPO-GT: second gold score)"),
        Line2D([], [], **plain, linestyle=SCALED, label="reward model, scaled (PPO-GT: gold)"),
        Line2D([], [], **plain, linestyle=OWN, label="implicit reward"),
    ]
    handles += [
        Line2D([], [], color=INK, linewidth=0.7, linestyle=FITS[form], label=law)
        for form, law in LAWS.items()
    ]
    top = "peak (hollow: no fall is shown after it)"
    return [*handles, Line2D([], [], **plain, linestyle="", marker="o", label=top)]
