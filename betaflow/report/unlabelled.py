"""Is DPO held back by learning from labelled prompts alone? The numbers of `unlabelled.json`.

A function of the policies' scored completions and of `compare` in params.yaml. Completions of all
training seeds are pooled; intervals are over prompts, paired by prompt where two are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from betaflow.config import CompareSettings, UnlabelledArm
from betaflow.errors import UserError
from betaflow.evaluation.bootstrap import UNKNOWN, Estimate
from betaflow.report.estimates import (
    KL_TEMPERATURE,
    Row,
    interval,
    judge_column,
    judged,
    spread,
    won,
)

Document = dict[str, Any]

DOMAINS = {"in": "", "out": "_ood"}  # by the samples' `domain`, what ends its columns' names
ESTIMATES = ["reward", "minus_dpo", "win_rate_vs_sft", "kl"]
COLUMNS = ["method", "labelled", "temperature", "seeds"]
COLUMNS += [
    f"{name}{domain}{end}"
    for domain in DOMAINS.values()
    for name in ESTIMATES
    for end in ("", "_low", "_high")
]
COLUMNS += [f"label_accuracy{end}" for end in ("", "_low", "_high")]


def unlabelled(
    arms: Sequence[UnlabelledArm],
    samples: Mapping[str, pd.DataFrame],
    labels: Mapping[str, pd.DataFrame],
    sft: pd.DataFrame,
    settings: CompareSettings,
) -> Document:
    """The document `unlabelled.json`, before rounding; `docs/metrics.md` explains its keys.

    Args:
        arms: the experiment's policies.
        samples: by arm name, its scored completions.
        labels: by arm name, its `labels.parquet`, of arms that learned from fresh pairs.
        sft: the reference's scored completions, of the same prompts and draws.
        settings: the judge and how to resample.

    Raises:
        UserError: samples that can't be compared.
    """
    reward = judge_column(settings)
    groups: dict[tuple[str, float], list[str]] = {}
    for arm in arms:
        groups.setdefault((arm.method, arm.labelled), []).append(arm.name)
    pooled = {key: pd.concat([samples[name] for name in names]) for key, names in groups.items()}
    rows = []
    for (method, share), names in groups.items():
        table = pooled[method, share]
        rated = pd.concat([judged(samples[name], sft, settings) for name in names])
        labelled = [labels[name] for name in names if name in labels]
        accuracy = _label_accuracy(pd.concat(labelled), settings) if labelled else UNKNOWN
        dpo = pooled.get(("dpo", share)) if method != "dpo" else None
        for temperature in sorted(set(table["temperature"])):
            row: Row = {"method": method, "labelled": share, "temperature": temperature}
            row["seeds"] = len(names)
            row |= _estimates(table, dpo, rated, temperature, reward, settings)
            rows.append(row | spread("label_accuracy", accuracy))
    return {
        "reward": reward,
        "confidence": settings.confidence,
        "sft": _sft(sft, reward, settings),
        "rows": rows,
        "arms": [_arm(arm, samples[arm.name], reward) for arm in arms],
    }


def _estimates(
    table: pd.DataFrame,
    dpo: pd.DataFrame | None,
    rated: pd.DataFrame,
    temperature: float,
    reward: str,
    settings: CompareSettings,
) -> Row:
    """A policy's numbers in both domains: its own, beside DPO's of the same share, and SFT's."""
    found: Row = {}
    for domain, end in DOMAINS.items():
        own = _at(table, domain, temperature)
        found |= spread(f"reward{end}", interval(own[reward], own["prompt_id"], settings))
        # A policy is its distribution at T = 1: the KL of that one is told on every row.
        at_one = _at(table, domain, KL_TEMPERATURE)
        found |= spread(f"kl{end}", interval(at_one["kl"], at_one["prompt_id"], settings))
        verdicts = rated[rated["temperature"] == temperature]
        verdicts = verdicts[verdicts["prompt_id"].isin(own["prompt_id"])]
        found |= spread(f"win_rate_vs_sft{end}", won(verdicts, settings))
        gap = UNKNOWN
        if dpo is not None:
            gap = _difference(own, _at(dpo, domain, temperature), reward, settings)
        found |= spread(f"minus_dpo{end}", gap)
    return found


def _at(table: pd.DataFrame, domain: str, temperature: float) -> pd.DataFrame:
    return table[(table["domain"] == domain) & (table["temperature"] == temperature)]


def _difference(
    a: pd.DataFrame, b: pd.DataFrame, reward: str, settings: CompareSettings
) -> Estimate:
    """The mean reward of a less that of b, prompt by prompt; seeds and draws are averaged first."""
    first, second = (side.groupby("prompt_id")[reward].mean() for side in (a, b))
    if set(first.index) != set(second.index):
        raise UserError("policies of the experiment were not sampled over the same prompts")
    gap = first - second
    return interval(gap.to_numpy(), gap.index.to_numpy(), settings)


def _label_accuracy(labels: pd.DataFrame, settings: CompareSettings) -> Estimate:
    """The share of fresh pairs labelled as the gold reward would; ties of gold are left out."""
    told = labels[labels["gold_margin"].notna() & (labels["gold_margin"] != 0)]
    return interval(told["gold_margin"] > 0, told["prompt"], settings)


def _sft(sft: pd.DataFrame, reward: str, settings: CompareSettings) -> list[Row]:
    """The reference's mean reward in both domains, by temperature."""
    rows = []
    for temperature in sorted(set(sft["temperature"])):
        row: Row = {"temperature": temperature}
        for domain, end in DOMAINS.items():
            own = _at(sft, domain, temperature)
            row |= spread(f"reward{end}", interval(own[reward], own["prompt_id"], settings))
        rows.append(row)
    return rows


def _arm(arm: UnlabelledArm, table: pd.DataFrame, reward: str) -> Row:
    """One training seed's means at T = 1: how far seeds differ."""
    row: Row = {"arm": arm.name, **arm.model_dump()}
    for domain, end in DOMAINS.items():
        own = _at(table, domain, KL_TEMPERATURE)
        row |= {f"reward{end}": float(own[reward].mean()), f"kl{end}": float(own["kl"].mean())}
    return row
