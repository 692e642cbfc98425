"""Samples, summaries and benchmarks of every arm -> the numbers of the comparison.

All of it is a function of those inputs and of `compare` in params.yaml. Measured wall time is
not, and is added where the table is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from betaflow.config import Arm, CompareSettings
from betaflow.errors import UserError
from betaflow.evaluation.bootstrap import Estimate, mean_interval
from betaflow.evaluation.win_rate import KEYS, paired, preferences, win_rate
from betaflow.report.costs import whole

Row = dict[str, Any]
KL_TEMPERATURE = 1.0  # a policy is its distribution at T = 1; KL is about that one
# By judge, the score that is shown beside its verdicts, and that decides them if it is one.
JUDGES = {"gold": "gold_reward", "reward_model": "reward_model", "llm": "reward_model"}
COLUMNS = [*KEYS, "domain", "prompt", "completion", "finish_reason", "completion_tokens", "kl"]
COLUMNS += ["gold_reward", "reward_model"]
SFT = "sft"


def estimates(
    arms: Sequence[Arm],
    samples: Mapping[str, pd.DataFrame],
    summaries: Mapping[str, Mapping[str, Any]],
    benchmarks: Mapping[str, Mapping[str, Any]],
    settings: CompareSettings,
) -> list[Row]:
    """A row per arm (in the order given, SFT first) and temperature that it has (rising).

    Args:
        arms: the sweep.
        samples: by arm name, its scored completions (columns of `COLUMNS`).
        summaries: by arm name, its `summary.json`; of arms that have a model, and of the stages
            `reward` and `reference`, which some of them need.
        benchmarks: by arm name, its lm-eval results; of arms that have a model.
        settings: the judge and how to resample.

    Returns:
        Rows with the columns of table.csv except seconds and those that `report.build` adds (by
        its functions `with_...`). Estimates are over in-domain prompts (`gold_reward_ood`: over the
        second domain's) and have `_low` and `_high` beside them; what was not measured is NaN. `kl`
        is the arm's at T = 1 on every row.

    Raises:
        UserError: an arm's samples lack a column, a score or a partner.
    """
    check_samples(arms, samples, settings)
    within = {arm.name: inside(samples, arm.name) for arm in arms}
    outside = {arm.name: samples[arm.name].query("domain == 'out'") for arm in arms}
    flops = {name: about.get("train_flops", float("nan")) for name, about in summaries.items()}
    tokens = {name: _passed(about) for name, about in summaries.items()}
    rows = []
    for arm in arms:
        temperatures = sorted(set(within[SFT if arm.has_model else arm.name]["temperature"]))
        rated = {
            name: None
            if other is None
            else judged(within[arm.name], at(within[other], temperatures), settings, name)
            for name, other in baselines(arms).items()
        }
        scores = benchmark_scores(benchmarks.get(arm.name, {}))
        for temperature in temperatures:
            row: Row = {"arm": arm.name, **arm.model_dump(), "temperature": temperature}
            row |= _sample_estimates(within[arm.name], outside[arm.name], temperature, settings)
            for name, verdicts in rated.items():
                row |= _win_estimate(f"win_rate_vs_{name}", verdicts, temperature, settings)
            row["train_tokens"] = summaries.get(arm.name, {}).get("train_tokens", float("nan"))
            row["whole_tokens"] = whole(row, tokens)
            row["train_flops"] = flops.get(arm.name, float("nan"))
            row["whole_flops"] = whole(row, flops)
            rows.append(row | scores)
    return rows


def _passed(summary: Mapping[str, Any]) -> float:
    """Tokens that a training learnt from or drew."""
    return float(summary.get("train_tokens", float("nan"))) + summary.get("sampled_tokens", 0)


def inside(samples: Mapping[str, pd.DataFrame], arm: str) -> pd.DataFrame:
    """An arm's samples of in-domain prompts, which the estimates are over."""
    table = samples[arm]
    return table[table["domain"] == "in"]


def at(samples: pd.DataFrame, temperatures: Iterable[float]) -> pd.DataFrame:
    """The samples at these temperatures."""
    return samples[samples["temperature"].isin(list(temperatures))]


def judge_column(settings: CompareSettings) -> str:
    """The samples' column that decides a win, or is shown where a language model decides."""
    return JUDGES[settings.judge]


def baselines(arms: Sequence[Arm]) -> dict[str, str | None]:
    """By the name that columns give it, the arm that others are compared with; None: no such."""
    return {"sft": SFT, "ppo": ppo_arm(arms)}


def ppo_arm(arms: Sequence[Arm]) -> str | None:
    """The PPO arm that others are compared with: the first in grid order."""
    return next((arm.name for arm in arms if arm.method == "ppo"), None)


def interval(values: Any, clusters: Any, settings: CompareSettings) -> Estimate:
    """`mean_interval` as `compare` in params.yaml asks."""
    return mean_interval(
        values,
        clusters,
        **settings.resampling,
    )


def won(verdicts: pd.DataFrame, settings: CompareSettings) -> Estimate:
    """`win_rate` of `judged` samples as `compare` in params.yaml asks."""
    return win_rate(
        verdicts["preference"],
        verdicts["prompt_id"],
        **settings.resampling,
    )


def judged(
    a: pd.DataFrame, b: pd.DataFrame, settings: CompareSettings, baseline: str | None = None
) -> pd.DataFrame:
    """Paired samples of two arms with the judge's `preference` of a over b.

    Args:
        baseline: which one b is, `sft` or `ppo`: a language model's verdicts are a's column of it
            (`judgements.with_verdicts`). None: no verdicts were asked for, and the score decides.
    """
    if settings.judge == "llm" and baseline is not None:
        return a[KEYS].assign(preference=a[f"preference_vs_{baseline}"])
    score = judge_column(settings)
    pairs = paired(a, b, [score])
    return pairs.assign(preference=preferences(pairs[f"{score}_a"], pairs[f"{score}_b"]))


def benchmark_scores(benchmark: Mapping[str, Any]) -> Row:
    """lm-eval scores, flat: `task/metric` and `task/metric_stderr`."""
    scores: Row = {}
    for task, metrics in sorted(benchmark.get("results", {}).items()):
        for metric, value in sorted(metrics.items()):
            if metric.endswith("_stderr") or not _is_number(value):
                continue
            scores[f"{task}/{metric}"] = float(value)
            scores[f"{task}/{metric}_stderr"] = _number(metrics.get(f"{metric}_stderr"))
    return scores


def check_samples(
    arms: Sequence[Arm], samples: Mapping[str, pd.DataFrame], settings: CompareSettings
) -> None:
    """Raise `UserError` unless every arm's samples can be compared with SFT's."""
    judge = judge_column(settings)
    for arm in arms:
        table = samples[arm.name]
        again = f"delete out/samples/{arm.name}.parquet and run again"
        missing = [column for column in COLUMNS if column not in table.columns]
        if missing:
            raise UserError(f"samples of {arm.name} have no column {missing[0]!r}; {again}")
        table = table[table["domain"] == "in"]
        if table.empty:
            raise UserError(f"there are no in-domain samples of {arm.name}; {again}")
        unscored = int(table[judge].isna().sum())
        if unscored == len(table):
            other = "reward_model" if settings.judge == "gold" else "gold"
            raise UserError(
                f"compare.judge is {settings.judge!r}, but no sample of {arm.name} has a "
                f"{judge}; set compare.judge: {other}"
            )
        if unscored:
            raise UserError(
                f"{unscored} of {len(table)} samples of {arm.name} have no {judge}; {again}"
            )


def _sample_estimates(
    inside: pd.DataFrame, outside: pd.DataFrame, temperature: float, settings: CompareSettings
) -> Row:
    """What is estimated from one arm's samples alone."""
    here = inside[inside["temperature"] == temperature]
    there = outside[outside["temperature"] == temperature]
    own = inside[inside["temperature"] == KL_TEMPERATURE]
    row: Row = {"prompts": int(here["prompt_id"].nunique()), "samples": len(here)}
    for name, table, column in [
        ("gold_reward", here, "gold_reward"),
        ("reward_model", here, "reward_model"),
        ("kl", own, "kl"),
        ("gold_reward_ood", there, "gold_reward"),
        ("completion_tokens", here, "completion_tokens"),
    ]:
        row |= spread(name, interval(table[column], table["prompt_id"], settings))
    return row


def _win_estimate(
    name: str, verdicts: pd.DataFrame | None, temperature: float, settings: CompareSettings
) -> Row:
    """The win rate, and on how many prompts and verdicts it rests: a missing one does not count."""
    if verdicts is None:
        ends = ("", "_low", "_high", "_prompts", "_verdicts")
        return {f"{name}{end}": float("nan") for end in ends}
    here = verdicts[verdicts["temperature"] == temperature]
    known = here.dropna(subset="preference")
    counts = {f"{name}_prompts": int(known["prompt_id"].nunique()), f"{name}_verdicts": len(known)}
    return spread(name, won(here, settings)) | counts


def spread(name: str, found: Estimate) -> Row:
    """An estimate as three columns: itself, and the ends of its interval."""
    return {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _number(value: Any) -> float:
    # lm-eval writes "N/A" for a standard error that it does not estimate.
    return float(value) if _is_number(value) else float("nan")
