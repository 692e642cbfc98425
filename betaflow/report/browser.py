"""The samples that the page lets its reader look through, as data for its script.

Model text is data here and nothing else: the page holds it as JSON and writes it as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import pandas as pd

from betaflow.config import Arm, CompareSettings
from betaflow.evaluation.win_rate import KEYS
from betaflow.report import text
from betaflow.report.estimates import SFT, Row, judge_column, judged

LARGEST = 1_200_000  # bytes of the page for samples; fewer prompts are shown where they are long
DOMAINS = {"in": "held-out prompts", "out": "another domain"}


def browser_data(
    arms: Sequence[Arm], samples: Mapping[str, pd.DataFrame], settings: CompareSettings
) -> dict[str, Any]:
    """The first `compare.report_samples` prompts of each domain, every arm, every temperature.

    Args:
        arms: the sweep.
        samples: by arm name, its scored completions (with verdicts where a language model judges).
        settings: `report_samples`, and the judge.

    Returns:
        `arms`: names, SFT's first. `domains`: their names in words. `prompts`, of the two domains
        in turn, each `domain`, `text`, and `drawn`: a list of `temperature` and `completions`, one
        of each arm: text, score, tokens, whether it was cut, and `won`, `lost`, `tie` against
        SFT's or an empty text where there is no verdict; or null. The first sampling seed.
    """
    seed = samples[SFT]["seed"].min()
    first = {name: table[table["seed"] == seed] for name, table in samples.items()}
    prompts = _chosen(first[SFT], settings.report_samples)
    told = {arm.name: _told(first[arm.name], first[SFT], prompts, settings) for arm in arms}
    known = first[SFT].drop_duplicates("prompt_id").set_index("prompt_id")
    temperatures = sorted(float(t) for t in first[SFT]["temperature"].unique())
    found: list[dict[str, Any]] = []
    size = 0
    for prompt in prompts:
        one = {
            "domain": DOMAINS[str(known.at[prompt, "domain"])],
            "text": text.visible(str(known.at[prompt, "prompt"])),
            "drawn": [
                {
                    "temperature": f"{at:g}",
                    "completions": [told[arm.name].get((prompt, at)) for arm in arms],
                }
                for at in temperatures
            ],
        }
        size += len(json.dumps(one, ensure_ascii=False).encode())
        if found and size > LARGEST:
            break
        found.append(one)
    return {
        "arms": [arm.name for arm in arms],
        "domains": list(dict.fromkeys(one["domain"] for one in found)),
        "temperatures": [f"{at:g}" for at in temperatures],
        "prompts": found,
    }


def _chosen(sft: pd.DataFrame, count: int) -> list[str]:
    """The first prompts of each domain, in turn."""
    lists = [
        list(dict.fromkeys(sft.loc[sft["domain"] == domain, "prompt_id"]))[:count]
        for domain in DOMAINS
    ]
    return [prompt for pair in zip_longest(*lists) for prompt in pair if prompt is not None]


def _told(
    own: pd.DataFrame, sft: pd.DataFrame, prompts: Sequence[str], settings: CompareSettings
) -> dict[tuple[str, float], Row]:
    """By prompt and temperature, an arm's completion as the page shows it."""
    own = own[own["prompt_id"].isin(prompts)]
    verdicts = judged(own, sft.merge(own[KEYS], on=KEYS), settings, SFT)["preference"]
    return {
        (row["prompt_id"], row["temperature"]): {
            "text": text.visible(str(row["completion"])),
            "score": text.number(_or_none(row[judge_column(settings)]), 2),
            "tokens": int(row["completion_tokens"]),
            "cut": row["finish_reason"] != "stop",
            "verdict": verdict(preference),
        }
        for row, preference in zip(own.to_dict("records"), verdicts, strict=True)
    }


def verdict(preference: float) -> str:
    """A preference in words; nothing where it is missing."""
    if pd.isna(preference):
        return ""
    return "tie" if preference == 0.5 else "won" if preference > 0.5 else "lost"


def _or_none(value: float) -> float | None:
    return None if pd.isna(value) else float(value)
