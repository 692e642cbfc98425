"""The numbers of figures that no other table has, for readers who can't see or point at a mark.

By figure, its tables: a `caption`, the columns' `heads`, and `rows` of texts, some with an
`interval`. Long lines are thinned out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from betaflow.report import text
from betaflow.report.interactive_training import thinned
from betaflow.report.vega import Spec

STEPS = 10  # of a line: its first, its last and those between, evenly

ENDS = ("", "_low", "_high")

Table = dict[str, Any]


def figure_tables(
    figures: Mapping[str, Spec], frontier: Mapping[str, Any], reward_model: Mapping[str, Any] | None
) -> dict[str, list[Table]]:
    """By the name of a figure, its tables.

    Args:
        figures: of `interactive.figures`; the training curves are read from there.
        frontier: `frontier.json`.
        reward_model: of `estimates.json`; None: no pairs were held out.
    """
    found = {
        name: [_line(panel) for panel in figure["panels"]]
        for name, figure in figures.items()
        if name.startswith("training_")
    }
    if frontier["optimum"] is not None:
        found["frontier"] = _frontier(frontier)
    if reward_model is not None:
        found["reward_model"] = _reward_model(reward_model)
    return found


def _line(panel: Spec) -> Table:
    """A panel of training curves: some steps of every arm."""
    by_arm: dict[str, list[Spec]] = {}
    for value in panel["data"]["values"]:
        by_arm.setdefault(value["arm"], []).append(value)
    return _table(
        f"{panel['title']}, running mean",
        ["arm", "step", "value"],
        [
            [_cell(arm), _cell(f"{line[at]['step']:,}"), _cell(f"{line[at]['value']:.4g}")]
            for arm, line in by_arm.items()
            for at in thinned(len(line), STEPS)
        ],
    )


def _frontier(frontier: Mapping[str, Any]) -> list[Table]:
    best = frontier["optimum"]
    curve = [
        {"kl": kl, "reward": reward, "reward_low": low, "reward_high": high}
        for kl, reward, low, high in zip(
            *(best[name] for name in ("kl", "reward", "low", "high")), strict=True
        )
    ]
    of = f"{best['prompts']:,} prompts, {best['draws']:,} draws of each"
    found = [
        _table(
            f"The closed-form optimum, of {of}",
            ["KL, nats", "gold reward"],
            [
                [_cell(f"{curve[at]['kl']:.3f}"), text.estimate(curve[at], "reward", 2)]
                for at in thinned(len(curve), STEPS)
            ],
        ),
        _table(
            f"Best-of-N by the gold reward, of {of}",
            ["N", "KL, nats", "gold reward"],
            [
                [_cell(f"{row['n']:,}"), _cell(f"{row['kl']:.3f}"), text.estimate(row, "reward", 2)]
                for row in frontier["best_of_n"]
            ],
        ),
    ]
    looks = [
        [_cell(arm)]
        + [_cell(one) for one in (f"{r['step']:,}", f"{r['kl']:.3f}", f"{r['reward']:.2f}")]
        for arm, rows in frontier["curves"].items()
        for r in (rows[at] for at in thinned(len(rows), STEPS))
    ]
    if looks:
        heads = ["arm", "step", "KL, nats", "gold reward"]
        found.append(_table("The way of each arm as it trained", heads, looks))
    return found


def _reward_model(found: Mapping[str, Any]) -> list[Table]:
    edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
    of = f"{found['pairs']:,} held-out pairs"
    return [
        _table(
            f"Accuracy by its confidence, of {of}",
            ["confidence, %", "accuracy, %", "pairs"],
            [
                [
                    _cell(f"{100 * row['confidence']:.1f}"),
                    text.estimate(
                        {f"accuracy{end}": row[end.strip("_") or "accuracy"] for end in ENDS},
                        "accuracy",
                        1,
                        100.0,
                    ),
                    _cell(f"{row['pairs']:,}"),
                ]
                for row in found["bins"]
            ],
        ),
        _table(
            f"Margins of {of}",
            ["margin from", "to", "pairs"],
            [
                [_cell(f"{low:z.2f}"), _cell(f"{high:z.2f}"), _cell(f"{count:,}")]
                for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
            ],
        ),
    ]


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[dict[str, str]]]) -> Table:
    return {"caption": caption, "heads": list(heads), "rows": [list(row) for row in rows]}


def _cell(value: str) -> dict[str, str]:
    return {"value": value, "interval": ""}
