"""Where a policy spends its KL: on which prompts, against the optimum of the same mean KL.

At a given mean KL the optimum moves most where its reward gains most by it: in a world whose reward
has an upper end, on prompts on which pi_ref earns little. A policy that moves alike on all prompts
has learnt what earns reward, but not what stands before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from betaflow.config import Arm, CompareSettings
from betaflow.evaluation.frontier import prompt_means
from betaflow.evaluation.optimum import kl_at
from betaflow.report.canvas import new_figure
from betaflow.report.estimates import Row, interval, spread
from betaflow.report.frontier import Draws
from betaflow.report.frontier_plot import INK
from betaflow.report.methods import LOOKS, seeds_of, settings_by_method
from betaflow.report.plots import stroke
from betaflow.report.settings import seeds_at_one

QUARTERS = ("lowest", "2nd", "3rd", "highest")
COLUMNS = ["method", "setting", "learning_rate", "seeds", "quarter", "prompts", "reference"]
COLUMNS += ["kl", "kl_low", "kl_high", "optimum_kl"]


def by_prompt(
    arms: Sequence[Arm],
    samples: Mapping[str, pd.DataFrame],
    draws: Draws | None,
    reward: str,
    settings: CompareSettings,
) -> list[Row]:
    """A row for each setting (its seeds pooled) and quarter of the prompts, by pi_ref's reward.

    Args:
        arms: the sweep.
        samples: by arm name, its scored completions.
        draws: of pi_ref; None: no rows.
        reward: the samples' column that the luck of draws is told by, with the KL.

    Returns:
        `reference`: pi_ref's mean reward on the quarter's prompts; `kl`: the setting's mean KL
        there at T = 1 without its draws' luck, with its interval over those prompts; `optimum_kl`:
        the optimum's, where its mean over all prompts is the setting's. SFT, Best-of-N (its KL is
        one bound) and settings whose KL is unknown or beyond what the draws tell are left out.
    """
    if draws is None or len(draws.prompts) < len(QUARTERS):
        return []
    order = np.argsort(draws.found.reference, kind="stable")
    rows = []
    trained = [arm for arm in arms if arm.has_model and arm.method != "sft"]
    for (method, point, rate), names in seeds_of(trained).items():
        own = seeds_at_one(samples, names, reward)
        if own["kl"].isna().any():
            continue
        kls = prompt_means(own["kl"], own["prompt_id"], draws.prompts)
        if not 0 <= kls.mean() <= draws.found.trusted_kl:
            continue
        best = kl_at(draws.found, float(kls.mean()))
        for quarter, part in enumerate(np.array_split(order, len(QUARTERS))):
            some = own[own["prompt_id"].isin(draws.prompts[part])]
            row: Row = {"method": method, "setting": point, "learning_rate": rate}
            row |= {"seeds": len(names), "quarter": quarter + 1, "prompts": len(part)}
            row["reference"] = float(draws.found.reference[part].mean())
            row |= spread("kl", interval(some["kl"], some["prompt_id"], settings))
            rows.append(row | {"optimum_kl": float(best[part].mean())})
    return rows


def draw_by_prompt(rows: Sequence[Row]) -> Figure:
    """A panel a method; a line a setting with its band, and the optimum of its KL beside it.

    Args:
        rows: of `by_prompt`, not empty.
    """
    methods = settings_by_method(rows)
    lines = 2 if len(methods) > 4 else 1
    count = -(-len(methods) // lines)
    figure, grid = new_figure(2.3 * max(count, 2) + 2.0, 2.9 * lines, len(methods), rows=lines)
    handles: list[Line2D] = []
    for place, (axes, (method, points)) in enumerate(zip(grid, methods.items(), strict=True)):
        for number, (point, own) in enumerate(points.items()):
            shade, dash = stroke(method, number)
            x = [row["quarter"] for row in own]
            low, high = ([row[f"kl{end}"] for row in own] for end in ("_low", "_high"))
            axes.plot(x, [row["optimum_kl"] for row in own], color=INK, linestyle=dash, lw=1)
            axes.plot(
                x, [row["kl"] for row in own], color=shade, linestyle=dash,
                marker=LOOKS[method].marker, markersize=4,
            )  # fmt: skip
            if None not in low:
                axes.fill_between(x, low, high, color=shade, alpha=0.12, linewidth=0)
            text = f"{method}, {point}" if point else method
            handles.append(Line2D([], [], color=shade, linestyle=dash, label=text))
        axes.set_title(method, fontsize=10)
        axes.set_ylim(bottom=0)
        axes.set_xticks(range(1, len(QUARTERS) + 1), QUARTERS, fontsize=8)
        if place % count == 0:
            axes.set_ylabel("KL, nats a completion")
    figure.supxlabel(
        r"quarter of the prompts, by π$_\mathrm{ref}$'s mean reward on them", fontsize=9
    )
    handles.append(
        Line2D(
            [], [], color=INK, lw=1, label="the optimum of the same\nmean KL, with the same dash"
        )
    )
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    return figure
