"""How many prompts the comparison needs, and whether this run has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from betaflow.config import DetectSettings
from betaflow.evaluation.power import Pilot, detection_power, pilot, prompts_needed
from betaflow.report import text
from betaflow.report.estimates import Row

# The smallest true win rate that a run should tell from one half, and with which chance, where
# `promotion.detect` says nothing.
DEFAULT = DetectSettings(win_rate=0.6, power=0.8)
RATES = {0.55, 0.6, 0.65, 0.7, 0.8}  # that the report has a row of, besides that one


def power(
    arm: str, verdicts: pd.DataFrame, confidence: float, detect: DetectSettings | None = None
) -> dict[str, Any]:
    """What the verdicts on an arm say about how many prompts it takes.

    Args:
        arm: its name.
        verdicts: its `judged` samples against SFT at one temperature.
        confidence: of the interval whose lower end is to be above one half.
        detect: `promotion.detect`; None: `DEFAULT`.

    Returns:
        `arm`; the `confidence`; `prompts`, those with a verdict, and of them the `ties`,
        `completions` a prompt and their `correlation` (`evaluation.power.pilot`); `detect` and
        `power`; `rows`, of each win rate the prompts `needed` (NaN where so many ties leave no room
        for it) and the `chance` with the prompts at hand (NaN with fewer than two).
    """
    aim = detect or DEFAULT
    known = verdicts.dropna(subset="preference")
    found = pilot(known["preference"], known["prompt_id"])
    prompts = int(known["prompt_id"].nunique())
    return {
        "arm": arm,
        "confidence": confidence,
        "detect": aim.win_rate,
        "power": aim.power,
        "prompts": prompts,
        "ties": found.ties,
        "completions": found.completions,
        "correlation": found.correlation,
        "rows": [
            _rate(rate, aim.power, found, prompts, confidence)
            for rate in sorted(RATES | {aim.win_rate})
        ],
    }


def _rate(rate: float, power: float, found: Pilot, prompts: int, confidence: float) -> Row:
    row: Row = {"win_rate": rate, "needed": float("nan"), "chance": float("nan")}
    if found.ties > 4 * rate * (1 - rate):
        return row
    kind = {
        "completions": found.completions,
        "ties": found.ties,
        "correlation": found.correlation,
        "confidence": confidence,
    }
    row["needed"] = prompts_needed(rate, power=power, **kind)
    if prompts > 1:
        row["chance"] = detection_power(prompts, rate, **kind)
    return row


def needed(about: Mapping[str, Any]) -> Row:
    """The row of the win rate that is to be detected; `about` is `estimates.json`'s `power`."""
    found: Row = next(row for row in about["rows"] if row["win_rate"] == about["detect"])
    return found


def enough(about: Mapping[str, Any]) -> bool | None:
    """Whether the run has the prompts that it takes; None where that can't be told."""
    count = needed(about)["needed"]
    return None if count is None else about["prompts"] >= count


def sentence(about: Mapping[str, Any]) -> str:
    """How many prompts it takes and how many there are, a warning where they are too few."""
    rate, chance = f"{about['detect']:.0%}", f"{about['power']:.0%}"
    row, has = needed(about), text.number(about["prompts"], 0)
    if row["needed"] is None:
        return (
            f"With so many ties ({about['ties']:.0%} of the verdicts) there is no telling how many "
            f"prompts show a true win rate of {rate}; this run has {has}."
        )
    found = (
        f"To see a true win rate of {rate} against SFT with a chance of {chance} takes "
        f"{text.number(row['needed'], 0)} prompts; this run has {has}"
    )
    if enough(about):
        return f"{found}."
    odds = "" if row["chance"] is None else f", and a chance of {_chance(row['chance'])}"
    return (
        f"Warning: {found}{odds}. Raise sample.prompts before you trust a tie; "
        "it takes as many held-out prompts."
    )


def power_section(document: Mapping[str, Any]) -> dict[str, Any]:
    """The sentence, the verdicts it rests on and a row a win rate; of `estimates.json`."""
    about = document["power"]
    return {
        "sentence": sentence(about),
        "arm": about["arm"],
        "temperature": f"{document['temperature']:g}",
        "prompts": text.number(about["prompts"], 0),
        "completions": text.number(about["completions"], 1),
        "ties": text.number(100 * about["ties"], 0),
        "correlation": text.number(about["correlation"], 2),
        "power": f"{about['power']:.0%}",
        "level": f"{100 * about['confidence']:.3g}%",
        "rows": [
            {
                "rate": text.number(100 * row["win_rate"], 0),
                "needed": text.number(row["needed"], 0),
                "chance": text.DASH if row["chance"] is None else _chance(row["chance"]),
            }
            for row in about["rows"]
        ],
    }


def _chance(value: float) -> str:
    return "> 99%" if value > 0.99 else f"{value:.0%}"
