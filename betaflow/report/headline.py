"""The comparison in words and a few numbers: which arm wins, and what can't be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from betaflow.config import Arm, Params
from betaflow.report.estimates import SFT, Row, interval, judged
from betaflow.report.methods import label, setting

Document = dict[str, Any]


def best_row(rows: Sequence[Row], temperature: float) -> Row:
    """The trained arm with the highest win rate against SFT; the first of equals."""
    return max(_trained(rows, temperature), key=lambda row: row["win_rate_vs_sft"])


def leads(
    best: str, arms: Sequence[Arm], samples: Mapping[str, pd.DataFrame], params: Params
) -> list[Row]:
    """How far the best arm's win rate against SFT lies above every other trained arm's.

    The difference is taken sample by sample over the same prompts, so its interval is narrower
    than the two arms' own intervals would suggest.

    Returns:
        Rows arm, difference, difference_low, difference_high, in the sweep's order.
    """
    temperature = params.promotion.temperature
    at = {
        name: table[(table["temperature"] == temperature) & (table["domain"] == "in")]
        for name, table in samples.items()
    }
    verdicts = {
        arm.name: judged(at[arm.name], at[SFT], params.compare, SFT).set_index(
            ["prompt_id", "temperature", "seed"]
        )["preference"]
        for arm in arms
        if arm.name != SFT
    }
    rows = []
    for name, other in verdicts.items():
        if name == best:
            continue
        difference = verdicts[best] - other.reindex(verdicts[best].index)
        prompts = difference.index.get_level_values("prompt_id")
        found = interval(difference.to_numpy(), prompts.to_numpy(), params.compare)
        rows.append(
            {
                "arm": name,
                "difference": found.estimate,
                "difference_low": found.low,
                "difference_high": found.high,
            }
        )
    return rows


def sentences(document: Document) -> list[str]:
    """The headline, a sentence an item, in plain text. `document` is `estimates.json`."""
    temperature, level = document["temperature"], f"{document['confidence']:.0%}"
    row = next(
        r
        for r in document["rows"]
        if r["arm"] == document["best"] and r["temperature"] == temperature
    )
    rate = _percent(row, "win_rate_vs_sft")
    first = f"{describe(row)} has the highest win rate against SFT at T = {temperature:g}"
    size = judged_of(row)
    found = [f"{first}: {rate} ({level} interval, {size})."]
    found.append(_beyond_chance(row, _trained(document["rows"], temperature)))
    found.append(_tied(document["leads"]))
    found.append(_against_ppo(row, document["ppo_arm"]))
    if document["judge"] == "reward_model":
        found.append(
            "The judge is the reward model that PPO was trained on, and it favours PPO: "
            "a model that learned to please it wins here whether or not people would agree."
        )
        found.append(_no_better_than_a_coin(document["reward_model"]))
    return [sentence for sentence in found if sentence]


def _no_better_than_a_coin(about: Mapping[str, Any] | None) -> str:
    """A warning of a reward model that is not shown to tell a chosen completion from another."""
    if about is None or _above(about["low"], 0.5):
        return ""
    row = {f"accuracy_{end}": about[end] for end in ("low", "high")}
    rate = _percent({"accuracy": about["accuracy"], **row}, "accuracy")
    return (
        f"Warning: on the held-out pairs it is right on {rate}, which is not shown to be better "
        "than a coin: don't trust its win rates."
    )


def describe(row: Row) -> str:
    """An arm in words: `DPO at β = 0.1 (dpo-b0.1-lr0.001-s0)`."""
    point = f" at {setting(row)}" if setting(row) else ""
    return f"{label(row)}{point} ({row['arm']})"


def judged_of(row: Row, name: str = "win_rate_vs_sft") -> str:
    """On how much a win rate rests: `160 prompts, 320 verdicts`."""
    return f"{row[f'{name}_prompts']} prompts, {row[f'{name}_verdicts']} verdicts"


def _trained(rows: Sequence[Row], temperature: float) -> list[Row]:
    """Without Best-of-N, which is a yardstick: no policy that could be promoted."""
    others = (SFT, "best_of_n")
    return [r for r in rows if r["temperature"] == temperature and r["method"] not in others]


def _beyond_chance(best: Row, trained: Sequence[Row]) -> str:
    """Which arms are shown to beat SFT where the best is not: one with more ties may well be."""
    if _above(best["win_rate_vs_sft_low"], 0.5):
        return ""
    lacks = best["win_rate_vs_sft_low"] is None
    first = "It has no interval" if lacks else "Its interval reaches one half"
    shown = [row["arm"] for row in trained if _above(row["win_rate_vs_sft_low"], 0.5)]
    if not shown:
        return f"{first}, and no arm is shown to beat SFT."
    return f"{first}; shown to beat SFT, by their own intervals: {', '.join(shown)}."


def _tied(leads: Sequence[Row]) -> str:
    """Over which arms the lead is more than chance, and how large it is, on the same prompts."""
    level = [row for row in leads if not _above(row["difference_low"], 0.0)]
    if not leads:
        return ""
    if not level:
        least = min(leads, key=lambda row: float(row["difference"]))
        first = "Its lead over every other arm is larger than chance explains"
        return f"{first}; the smallest is that over {_lead(least)}, prompt by prompt."
    first = "It is not distinguishable from " + ", ".join(_lead(row) for row in level)
    return f"{first}: the paired difference of the win rates could as well be zero."


def _lead(row: Row) -> str:
    """An arm, and by how many points of win rate the best lies above it."""
    low, high = row["difference_low"], row["difference_high"]
    if row["difference"] is None:
        return f"{row['arm']} (no sample was judged of both)"
    ends = "no interval" if None in (low, high) else f"[{100 * low:.1f}, {100 * high:.1f}]"
    return f"{row['arm']} ({100 * row['difference']:+.1f} points {ends})"


def _against_ppo(row: Row, baseline: str | None) -> str:
    if baseline is None or baseline == row["arm"]:
        return ""
    rate = _percent(row, "win_rate_vs_ppo")
    low, high = row["win_rate_vs_ppo_low"], row["win_rate_vs_ppo_high"]
    if _above(low, 0.5):
        verdict = "it is preferred to PPO"
    elif high is not None and high < 0.5:
        verdict = "PPO is preferred to it"
    else:
        verdict = "the interval holds one half, so neither is shown to be better"
    on = judged_of(row, "win_rate_vs_ppo")
    return f"Against {baseline} on the same prompts ({on}) it wins {rate}: {verdict}."


def _above(low: float | None, mark: float) -> bool:
    return low is not None and low > mark


def _percent(row: Row, name: str) -> str:
    if row[f"{name}_low"] is None:
        return f"{row[name]:.1%} (no interval)"
    return f"{row[name]:.1%} [{row[f'{name}_low']:.1%}, {row[f'{name}_high']:.1%}]"
