"""The figure of reward against KL, as in the DPO paper (Figure 2, left), with the best there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from betaflow.report.canvas import new_figure
from betaflow.report.estimates import Row
from betaflow.report.methods import LOOKS, SCORERS, colours, label
from betaflow.report.plots import REWARDS, bars, method_handles

WIDEST = 20.0  # nats; arms beyond are marked at the edge
INK, BEST_OF_N = "#1b1f24", "#777777"
BEST_OF_N_DASHES = {"gold": (4, 2), "reward_model": (1, 2)}  # by what the best is chosen by

Document = Mapping[str, Any]


def draw_frontier(document: Document) -> Figure:
    """Every arm's end, the way of each while it trained, the optimum and Best-of-N.

    Args:
        document: `frontier.json`.
    """
    rows: list[Row] = [row for row in document["arms"] if row["kl"] is not None]
    shades = colours(document["arms"])
    figure, (axes,) = new_figure(8.6, 4.8)
    limit = _limit(document, rows)
    handles = _optimum(axes, document)
    for name, looks in document["curves"].items():
        _way(axes, looks, _start(document), limit, shades[name])
    for row in rows:
        _end(axes, row, limit, shades[row["arm"]])
    _label_those_beyond(axes, rows, limit)
    axes.set_xlim(-0.02 * limit, 1.02 * limit)
    axes.margins(y=0.08)
    axes.set_xlabel(r"KL(π ‖ π$_\mathrm{ref}$), nats a completion")
    axes.set_ylabel(f"{REWARDS[document['reward'].removesuffix('_reward')]}, mean, T = 1")
    handles += method_handles(rows, shades)
    if document["curves"]:
        handles.append(
            Line2D([], [], color="#999999", linewidth=0.9, marker=".", label="while it trained")
        )
    figure.legend(handles=handles, loc="outside right upper", fontsize=8.5)
    return figure


def alt_text(document: Document) -> str:
    """What the figure shows, for readers who do not see it."""
    reward = REWARDS[document["reward"].removesuffix("_reward")]
    points = "; ".join(
        f"{row['arm']}: KL {row['kl']:.2f}, {reward} {row['reward']:.2f}"
        + ("" if row["fraction"] is None else f", {row['fraction']:.0%} of the optimum's gain")
        for row in document["arms"]
        if row["kl"] is not None
    )
    best = document["optimum"]
    rises = (
        ""
        if best is None
        else f" The closed-form optimum rises from {best['reward'][0]:.2f} at KL 0 to "
        f"{best['reward'][-1]:.2f} at KL {best['trusted_kl']:.2f}, where it is cut off; "
        "Best-of-N by gold lies close under it."
    )
    return f"Scatter plot of {reward} against KL from SFT at T = 1.{rises} {points}."


def _limit(document: Document, rows: Sequence[Row]) -> float:
    """The right end of the KL axis, nats."""
    kls = [row["kl_high"] or row["kl"] for row in rows]
    kls += [point["kl"] for point in document["best_of_n"]]
    if document["optimum"] is not None:
        kls.append(document["optimum"]["trusted_kl"])
    return 1.05 * max([kl for kl in kls if kl <= WIDEST], default=WIDEST) or 1.0


def _start(document: Document) -> tuple[float, float] | None:
    """Where every arm begins: pi_ref, at a KL of 0."""
    if document["optimum"] is not None:
        return 0.0, document["optimum"]["reference"]
    return next(((0.0, r["reward"]) for r in document["arms"] if r["method"] == "sft"), None)


def _optimum(axes: Axes, document: Document) -> list[Line2D]:
    """Draw what no policy is above, and Best-of-N; their legend entries."""
    best = document["optimum"]
    if best is None:
        return []
    if best["low"][0] is not None:
        axes.fill_between(best["kl"], best["low"], best["high"], color=INK, alpha=0.13, linewidth=0)
    (optimum,) = axes.plot(
        best["kl"], best["reward"], color=INK, linewidth=2, zorder=2,
        label=f"optimum (closed form), as far\nas {best['draws']:,} draws a prompt tell it",
    )  # fmt: skip
    lines = [optimum]
    for scorer, dashes in BEST_OF_N_DASHES.items():
        points = [point for point in document["best_of_n"] if point["scorer"] == scorer]
        if points:
            lines += axes.plot(
                [point["kl"] for point in points],
                [point["reward"] for point in points],
                color=BEST_OF_N,
                linewidth=1.2,
                linestyle=(0, dashes),
                marker="|",
                markersize=6,
                label=f"Best-of-N ({SCORERS[scorer]}), N = 1 to {points[-1]['n']}",
                zorder=2,
            )
    return lines


def _way(
    axes: Axes,
    looks: Sequence[Row],
    start: tuple[float, float] | None,
    limit: float,
    colour: Any,
) -> None:
    """A thin line through the looks at an arm, as far as the axis goes."""
    points = [] if start is None else [start]
    for look in looks:
        if look["kl"] > limit:
            break
        points.append((look["kl"], look["reward"]))
    axes.plot(
        *zip(*points, strict=True), color=colour, linewidth=0.9, marker=".", markersize=2.5,
        alpha=0.6, zorder=1,
    )  # fmt: skip


def _end(axes: Axes, row: Row, limit: float, colour: Any) -> None:
    """An arm as it ended, with its intervals; at the axis's edge where it lies beyond."""
    beyond = row["kl"] > limit
    axes.errorbar(
        limit if beyond else row["kl"],
        row["reward"],
        xerr=None if beyond else bars(row, "kl"),
        yerr=bars(row, "reward"),
        color=colour,
        marker=LOOKS[label(row)].marker,
        markersize=7,
        markeredgecolor="white",
        markeredgewidth=0.6,
        elinewidth=1,
        linestyle="",
        clip_on=not beyond,
        zorder=3,
    )


def _label_those_beyond(axes: Axes, rows: Sequence[Row], limit: float) -> None:
    for row in rows:
        if row["kl"] > limit:
            axes.annotate(
                f"KL {row['kl']:.0f} →", (limit, row["reward"]), (-8, 0),
                textcoords="offset points", ha="right", va="center", fontsize=8,
            )  # fmt: skip
