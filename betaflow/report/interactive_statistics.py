"""The interactive figures of statistics: win rates, all arms against all, lm-eval against SFT."""

from __future__ import annotations

from typing import Any

from matplotlib import colormaps

from betaflow.report import text
from betaflow.report.estimates import Row
from betaflow.report.headline import Document, judged_of
from betaflow.report.pairwise import by_rating
from betaflow.report.pairwise_plot import COLOURS, INK, LEGIBLE, unsure
from betaflow.report.tax import difference
from betaflow.report.tax_plot import tax_panels
from betaflow.report.vega import (
    Spec,
    axis,
    by_arm,
    dashed,
    faded,
    figure,
    marks,
    panel,
    series,
    shaped,
    tips,
)

ROW, SMALL_ROW = 24, 12  # pixels of an arm: with its numbers, and without


def win_rate(document: Document) -> Spec:
    """Win rate against SFT and against PPO at each sampling temperature."""
    rows: list[Row] = document["rows"]
    baselines = {"win_rate_vs_sft": ("SFT", "sft")}
    if document["ppo_arm"] is not None:
        baselines["win_rate_vs_ppo"] = (f"PPO ({document['ppo_arm']})", document["ppo_arm"])
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    names = series(rows, arms)
    panels = []
    for column, (against, itself) in baselines.items():
        values = [
            {"arm": row["arm"], "series": names[row["arm"]], "temperature": row["temperature"]}
            | {"rate": row[column], "low": row[f"{column}_low"], "high": row[f"{column}_high"]}
            | {"told": text.on_a_line(row, column, 1, 100.0, "%"), "of": judged_of(row, column)}
            for row in rows
            if row["arm"] != itself and row[column] is not None
        ]
        x = axis("temperature", "sampling temperature")
        at = sorted({row["temperature"] for row in rows})
        x["axis"] = {"values": at, "labelExpr": "'' + datum.value"}  # 0.25, not 0.3
        y = axis("rate", "share of prompts won (a tie is half)", domain=[0, 1])
        y["axis"] = {"format": ".0%"}
        shown = {"arm": "arm", "temperature": "T", "told": f"wins vs {against}", "of": "of"}
        layers = [
            {"data": {"values": [{}]}, "mark": {"type": "rule", "style": "half"},
             "encoding": {"y": {"datum": 0.5}}},
            {
                "mark": {"type": "area", "aria": False},
                "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"},
                             "color": by_arm(arms), "opacity": faded(0.12, 0.0)},
            },
            {
                "mark": {"type": "line", "strokeWidth": 1.8, "aria": False},
                "encoding": {"x": x, "y": y, "color": by_arm(arms),
                             "strokeDash": dashed(rows, arms), "opacity": faded(1.0)},
            },
            {
                "mark": {"type": "rule", "aria": False},
                "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"},
                             "color": by_arm(arms), "opacity": faded(0.35)},
            },
            marks(rows, arms, x, y, shown),
        ]  # fmt: skip
        description = f"Lines of each arm's win rate against {against} at each temperature."
        panels.append(panel(f"Against {against}", description, values, layers))
    return figure(rows, arms, panels)


def pairwise(document: Document, description: str) -> Spec:
    """The matrix of win rates, arms by falling rating; a cell's colour is white at one half."""
    found = document["pairwise"]
    arms = by_rating(found)
    values = [
        {"arm": row["arm"], "other": row["other"], "rate": row["estimate"]}
        | {"shown": _shown(row), "dark": _dark(row["estimate"]), **_told(row)}
        for row in found["rows"]
        if row["estimate"] is not None
    ]
    x = _names("other", "is preferred to …", arms) | {"axis": {"labelAngle": -90}}
    place = {"x": x, "y": _names("arm", "", arms)}
    shade = {
        "field": "rate",
        "type": "quantitative",
        "scale": {"domain": [0, 1], "range": _ramp()},
        "legend": {"title": "win rate", "format": ".0%"},
    }
    shown = {"arm": "arm", "other": "over", "told": "is preferred", "of": "on"}
    layers: list[Spec] = [
        {
            "mark": {"type": "rect"},
            "encoding": {
                **place,
                "color": shade,
                "tooltip": tips(shown),
                "description": {"field": "said"},
            },
        }
    ]
    if numbers := len(arms) <= LEGIBLE:
        ink = {"condition": {"test": "datum.dark", "value": "#fff"}, "value": INK}
        mark = {"type": "text", "fontSize": 11, "aria": False}
        written = {**place, "text": {"field": "shown"}, "color": ink, "tooltip": tips(shown)}
        layers.append({"mark": mark, "encoding": written})
    drawn = panel("", description, values, layers)
    drawn["height"] = (ROW if numbers else SMALL_ROW) * len(arms)
    return {"series": [], "colours": {"light": [], "dark": []}, "panels": [drawn]}


def tax(document: Document, description: str) -> Spec:
    """Each arm's difference from SFT on each task, a panel a task, and the alignment tax."""
    found = tax_panels(document)
    rows = document["rows"]
    arms = list(dict.fromkeys(row["arm"] for row in found[0]["rows"]))
    names = series(rows, arms)
    panels = []
    for one in found:
        column = one["name"]
        values = [
            {"arm": row["arm"], "series": names[row["arm"]], "value": row[column]}
            | {end: row[f"{column}_{end}"] for end in ("low", "high")}
            | _differs(row, column)
            for row in one["rows"]
            if row[column] is not None
        ]
        x, y = axis("value", one["axis"]), _names("arm", "", arms)
        shade = {"color": by_arm(arms), "opacity": faded(1.0)}
        told = {"arm": "arm", "told": one["title"].replace("\n", ": ")}
        told |= {"p": "adjusted"} if column == "difference" else {}
        layers = [
            {"data": {"values": [{}]}, "mark": {"type": "rule", "style": "half"},
             "encoding": {"x": {"datum": 0}}},
            {"mark": {"type": "rule", "aria": False},
             "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}, "y": y, **shade}},
            {"mark": {"type": "point", "filled": True, "size": 80},
             "encoding": {"x": x, "y": y, **shade, "shape": shaped(rows, arms),
                          "tooltip": tips(told), "description": {"field": "said"}}},
        ]  # fmt: skip
        drawn = panel(one["title"], description, values, layers)
        panels.append(drawn | {"title": one["title"].split("\n"), "height": ROW * len(arms)})
    return figure(rows, arms, panels)


def _names(field: str, title: str, arms: list[str]) -> Spec:
    """An axis of arms in this order."""
    return {"field": field, "type": "nominal", "title": title, "scale": {"domain": arms}}


def _told(row: Row) -> dict[str, str]:
    """A win rate's texts: for a tooltip and, in one piece, for a screen reader."""
    named = {f"rate{end}": row[end.strip("_") or "estimate"] for end in ("", "_low", "_high")}
    told = text.on_a_line(named, "rate", 1, 100.0, "%")
    of = f"{row['prompts']} prompts"
    return {"told": told, "of": of, "said": f"{row['arm']} over {row['other']}: {told}, {of}"}


def _shown(row: Row) -> str:
    """What stands in a cell: in parentheses where the interval holds one half."""
    percent = f"{100 * row['estimate']:.0f}"
    return f"({percent})" if unsure(row) else percent


def _dark(rate: float) -> bool:
    red, green, blue, _ = colormaps[COLOURS](rate)
    return bool(0.299 * red + 0.587 * green + 0.114 * blue < 0.5)


def _ramp() -> list[str]:
    """The static figure's colours, from 0 to 1."""
    steps = [colormaps[COLOURS](at / 10) for at in range(11)]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in step[:3]) for step in steps]


def _differs(row: Row, column: str) -> dict[str, Any]:
    """A difference's texts, as `_told`."""
    if column != "difference":
        told = text.on_a_line(row, column, 1, 1.0, " points")
        return {"told": told, "said": f"{row['arm']}: {told}"}
    found = difference(row)
    return {"told": found["change"], "p": found["p"], "said": f"{row['arm']}: {found['change']}"}
