"""The report's section on the judge, as texts. `about` is `out/judgements/summary.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from betaflow.report import text
from betaflow.report.plots import REWARDS

OUTCOMES = {True: "passed", False: "FAILED", None: "not measured"}
SIGNS = {"self": "around", "order": "at least"}  # the others: at most
ORDER = {
    "consistency": "pairs with the same winner in both orders of showing",
    "first": "verdicts for the completion that is shown first",
}


def judge_section(about: Mapping[str, Any]) -> dict[str, Any]:
    """Who judges (`title`), its `controls` and `order` effects a row each, and its `usage`."""
    model, order = about["model"], about["order"]
    title = f"the {REWARDS[about['judge']]}" if model is None else f"the language model {model}"
    return {
        "title": title,
        "level": f"{about['controls']['confidence']:.1%}",
        "controls": [_control(row) for row in about["controls"]["rows"]],
        "order": [
            {
                "about": what,
                "pairs": text.number(order["pairs"], 0),
                **text.estimate(order, name, 1, 100.0),
            }
            for name, what in ORDER.items()
        ]
        if order is not None
        else [],
        "usage": about["usage"],
    }


def _control(row: Mapping[str, Any]) -> dict[str, str]:
    """A control: percent with its interval, what is allowed, pairs, whether it passed."""
    found = {f"estimate{end}": row[end.strip("_") or "estimate"] for end in ("", "_low", "_high")}
    limit = text.number(row["limit"] * 100, 0)
    return {
        "control": row["control"],
        "about": row["about"],
        **text.estimate(found, "estimate", 1, 100.0),
        "limit": f"{SIGNS.get(row['control'], 'at most')} {limit}",
        "pairs": text.number(row["pairs"], 0),
        "outcome": OUTCOMES[row["passed"]],
    }


def judge_sentences(about: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the judge before believing it."""
    found = []
    if about["model"] is not None:
        found.append(f"The judge is the language model {about['model']}, asked in both orders.")
    if count := sum(about["missing"].values()):
        reasons = ", ".join(f"{reason}: {number}" for reason, number in about["missing"].items())
        found.append(
            f"{count} of its {about['pairs']} verdicts are missing ({reasons}); they count neither "
            "as ties nor as losses."
        )
    if names := about["controls"]["failed"]:
        found.append(f"The judge failed a control ({', '.join(names)}): don't trust its win rates.")
    return found
