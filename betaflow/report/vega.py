"""Vega-Lite in the page: the library's script, and what every figure shares.

A figure is one or more panels, each a Vega-Lite specification in plain JSON, and the arms that its
legend lists. The page draws them (`report.js`), with colours for its light or its dark theme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from colorsys import hls_to_rgb, rgb_to_hls
from functools import cache
from typing import Any

import vl_convert

from betaflow.report.estimates import Row
from betaflow.report.methods import LOOKS, colours, label

VEGA_LITE = "6.4"
MANY = 16  # arms; the legend of a figure with more lists methods
HEIGHT = 280  # pixels of a panel
# matplotlib's markers as paths in the square from -1 to 1: Vega's form, and SVG's.
SHAPES = {
    "o": "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z",
    "s": "M-.9,-.9L.9,-.9L.9,.9L-.9,.9Z",
    "D": "M0,-1L1,0L0,1L-1,0Z",
    "^": "M0,-1L1,.8L-1,.8Z",
    "v": "M0,1L1,-.8L-1,-.8Z",
    "<": "M-1,0L.8,-1L.8,1Z",
    "P": "M-.4,-1L.4,-1L.4,-.4L1,-.4L1,.4L.4,.4L.4,1L-.4,1L-.4,.4L-1,.4L-1,-.4L-.4,-.4Z",
    "X": "M-.5,-1L0,-.5L.5,-1L1,-.5L.5,0L1,.5L.5,1L0,.5L-.5,1L-1,.5L-.5,0L-1,-.5Z",
    "p": "M0,-1L.95,-.31L.59,.81L-.59,.81L-.95,-.31Z",
    "h": "M0,-1L.87,-.5L.87,.5L0,1L-.87,.5L-.87,-.5Z",
    "*": "M0,-1L.26,-.31L.95,-.31L.38,.12L.59,.81L0,.38L-.59,.81L-.38,.12L-.95,-.31L-.26,-.31Z",
}
DASHES = [[1, 0], [6, 2], [4, 2, 1, 2], [1, 2]]  # as in the static figures, in pixels

Spec = dict[str, Any]


@cache
def script() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that asks for nothing else."""
    found: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    if "</script" in found.lower() or "<!--" in found:
        raise ValueError("Vega's script can't stand in a page: it holds a tag's end")
    return found


def figure(rows: Sequence[Row], arms: Sequence[str], panels: Sequence[Spec]) -> Spec:
    """A figure of some arms: its panels, the legend's entries and the colours of each theme.

    Args:
        rows: of all arms, since an arm has the same colour in every figure.
        arms: those that are drawn here, in order.
        panels: of `panel`; their data name an arm by `arm` and its legend's entry by `series`.
    """
    shades = {arm: _hex(colour) for arm, colour in colours(rows).items()}
    names = series(rows, arms)
    entries: dict[str, Spec] = {}
    for arm in arms:
        look = LOOKS[_labels(rows)[arm]]
        entry: Spec = {"name": names[arm], "colour": shades[arm], "dark": on_dark(shades[arm])}
        entry |= {"shape": SHAPES[look.marker], "dash": dash(rows, arm)}
        entries.setdefault(names[arm], entry)
    light = [shades[arm] for arm in arms]
    return {
        "series": list(entries.values()),
        "colours": {"light": light, "dark": [on_dark(colour) for colour in light]},
        "panels": list(panels),
    }


def series(rows: Sequence[Row], arms: Sequence[str]) -> dict[str, str]:
    """By arm, its entry in the legend: itself, or its method where there are many arms."""
    labels = _labels(rows)
    return {arm: arm if len(arms) <= MANY else labels[arm] for arm in arms}


def panel(title: str, description: str, values: Sequence[Spec], layers: Sequence[Spec]) -> Spec:
    """A panel as wide as its place. `shown`: the chosen entries of the legend; none: all."""
    return {
        "title": title,
        "description": description,
        "width": "container",
        "height": HEIGHT,
        "params": [{"name": "shown", "value": []}],
        "data": {"values": list(values)},
        "layer": list(layers),
    }


def by_arm(arms: Sequence[str]) -> Spec:
    """The colour of a mark by its arm."""
    # The page gives the colours of its theme as the configured range.
    return {"field": "arm", "type": "nominal", "scale": {"domain": list(arms)}, "legend": None}


def shaped(rows: Sequence[Row], arms: Sequence[str]) -> Spec:
    """The shape of a point by its arm's method."""
    labels = _labels(rows)
    shapes = [SHAPES[LOOKS[labels[arm]].marker] for arm in arms]
    scale = {"domain": list(arms), "range": shapes}
    return {"field": "arm", "type": "nominal", "scale": scale, "legend": None}


def dashed(rows: Sequence[Row], arms: Sequence[str]) -> Spec:
    """The dashes of a line by its arm."""
    scale = {"domain": list(arms), "range": [dash(rows, arm) for arm in arms]}
    return {"field": "arm", "type": "nominal", "scale": scale, "legend": None}


def faded(opacity: float, otherwise: float = 0.06) -> Spec:
    """An opacity for marks of the legend's chosen entries, a lower one for the others."""
    test = "length(shown) == 0 || indexof(shown, datum.series) >= 0"
    return {"condition": {"test": test, "value": opacity}, "value": otherwise}


def marks(
    rows: Sequence[Row], arms: Sequence[str], x: Spec, y: Spec, shown: Mapping[str, str]
) -> Spec:
    """Points that tell the arm by colour and the method by shape."""
    return {
        "mark": {"type": "point", "filled": True, "size": 80},
        "encoding": {
            "x": x,
            "y": y,
            "color": by_arm(arms),
            "shape": shaped(rows, arms),
            "opacity": faded(1.0),
            "tooltip": tips(shown),
        },
    }


def axis(field: str, title: str, **scale: Any) -> Spec:
    """A quantitative axis that need not hold zero."""
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"zero": False, **scale},
    }


def tips(fields: Mapping[str, str]) -> list[Spec]:
    """A tooltip's lines: by field of the data, its title."""
    return [{"field": field, "title": title} for field, title in fields.items()]


def dash(rows: Sequence[Row], arm: str) -> list[int]:
    """An arm's dashes: the same in every figure."""
    return DASHES[list(_labels(rows)).index(arm) % len(DASHES)]


def on_dark(colour: str) -> str:
    """A colour told as well on a dark ground: dark ones turned light, of the same hue."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    hue, lightness, saturation = rgb_to_hls(red, green, blue)
    return _hex(hls_to_rgb(hue, 0.95 - 0.5 * lightness, saturation))


def _labels(rows: Sequence[Row]) -> dict[str, str]:
    return {row["arm"]: label(row) for row in rows}


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)
