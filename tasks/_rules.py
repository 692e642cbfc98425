"""The rules of `promotion` in params.yaml, put to a challenger's and a champion's evidence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from betaflow.config import Arm, CompareSettings, Params, arms
from betaflow.errors import UserError
from betaflow.evaluation.alignment_tax import (
    OF_MEAN_LOGLIKELIHOOD,
    higher_is_better,
    no_surer_than_alike,
    paired_difference,
)
from betaflow.evaluation.bootstrap import Estimate
from betaflow.evaluation.controls import CONFIDENCE
from betaflow.evaluation.judges import VERDICT, order_effects
from betaflow.evaluation.length_control import length_controlled_win_rate
from betaflow.evaluation.power import pilot
from betaflow.evaluation.promotion import (
    Rule,
    another_model,
    beats_a_coin,
    candidates,
    controls_passed,
    enough_prompts,
    enough_seeds,
    enough_verdicts,
    not_rolled_back,
    not_worse,
    nothing_measured,
    same_in_both_orders,
    simultaneous,
    unpaired,
    wins,
    within_budget,
)
from betaflow.evaluation.win_rate import KEYS, paired, preferences
from betaflow.io import read_json
from betaflow.report.estimates import KL_TEMPERATURE, SFT, interval, judge_column, won
from betaflow.report.inputs import read_table
from tasks._evidence import Evidence
from tasks.judge import judge

JUDGEMENTS = Path("out/judgements")
ONE_PERPLEXITY = "bits_per_byte"  # of the perplexities, which are functions of one another


def rules(
    params: Params,
    arm: Arm,
    challenger: Evidence,
    champion: Evidence,
    verdicts: pd.DataFrame,
    rolled_back: int | None = None,
) -> list[Rule]:
    """Every rule's result.

    Args:
        champion: SFT's evidence where there is none yet.
        verdicts: of `judged_against`.
        rolled_back: the version as which the challenger's weights were rolled back.
    """
    settings = params.promotion
    others = candidates(_compared(params), settings.methods, arm)
    confidence = simultaneous(params.compare.confidence, len(others))
    compare = params.compare.model_copy(update={"confidence": confidence})
    params = params.model_copy(update={"compare": compare})  # of every interval from here on
    found = [another_model(challenger.content, champion.content), not_rolled_back(rolled_back)]
    for name, rate in _win_rates(compare, verdicts).items():
        found.append(wins(name, rate, confidence=confidence))
    missing = float(verdicts["preference"].isna().mean())
    lost = _win_rates(compare, verdicts.fillna({"preference": 0.0})) if missing > 0 else {}
    limit = compare.controls.missing_limit
    found.append(enough_verdicts(missing, limit, [*lost.values()]))
    if compare.judge == "llm":
        how = compare.resampling | {"confidence": CONFIDENCE}
        found.append(same_in_both_orders(order_effects(verdicts, verdicts["prompt_id"], **how)))
    if compare.judge == "reward_model":
        found.append(beats_a_coin(_accuracy()))
    if settings.margins is not None:
        found += _task_rules(params, challenger.benchmark, champion.benchmark)
        if champion.name != SFT:  # else a row of champions may each lose nearly the margin
            sft = read_json(f"out/benchmark/{SFT}.json")
            found += map(_against_sft, _task_rules(params, challenger.benchmark, sft))
    if settings.kl_budget is not None:
        found.append(within_budget(_kl(params, challenger.samples), settings.kl_budget))
    if settings.detect is not None:
        known = verdicts.dropna(subset="preference")
        found.append(
            enough_prompts(
                int(known["prompt_id"].nunique()),
                pilot(known["preference"], known["prompt_id"]) if len(known) else None,
                **settings.detect.model_dump(),
                confidence=confidence,
            )
        )
    found.append(enough_seeds(len(_siblings(params, arm)), settings.seeds))
    return [*found, _controls(params)]


def judged_against(
    params: Params, challenger: Evidence, champion: Evidence
) -> tuple[pd.DataFrame, dict[str, object] | None]:
    """The judge's preferences for the challenger, on the same prompts, of independent draws.

    Returns:
        In domain, at `promotion.temperature`: prompt_id, preference (NaN: no verdict), and both
        completions' tokens, `completion_tokens_a` the challenger's; of a language model its
        `VERDICT` too. And what its answers took (`Usage`), None where none was asked for this.
    """
    a, b = (_in_question(params, one.samples) for one in (challenger, champion))
    if (
        challenger.drawn_as is not None
        and challenger.drawn_as == champion.drawn_as
        and challenger.content != champion.content
    ):  # an arm trained anew draws by the seeds that its champion drew by
        b = _shifted(b)
    score = judge_column(params.compare)
    pairs = paired(a, b, ["completion", "completion_tokens", score])
    if params.compare.judge != "llm":
        told = preferences(pairs[f"{score}_a"], pairs[f"{score}_b"])
        return pairs.assign(preference=told), None
    if champion.name == SFT:
        known = pairs.merge(_verdicts(challenger.name), on=KEYS, how="left")
        return known.fillna({"ab": "", "ba": ""}), None
    # Of a champion from elsewhere nothing was asked yet; answers are kept, and asked for once.
    found, usage = judge(pairs.assign(prompt=a["prompt"].to_numpy()), params.compare)
    return pairs.assign(**{name: found[name].to_numpy() for name in VERDICT}), usage


def _shifted(samples: pd.DataFrame) -> pd.DataFrame:
    """Each draw of a prompt under the seed of the next one, where there are several."""
    seeds = sorted(samples["seed"].unique())
    following = dict(zip(seeds, [*seeds[1:], *seeds[:1]], strict=True))
    return samples.assign(seed=samples["seed"].map(following))


def _verdicts(arm: str) -> pd.DataFrame:
    """What the language model said of an arm against SFT in the stage `judge`."""
    told = read_table(JUDGEMENTS / "verdicts.parquet")
    own = told[(told["arm"] == arm) & (told["baseline"] == SFT)]
    return own[[*KEYS, *VERDICT]]


def _in_question(params: Params, samples: pd.DataFrame) -> pd.DataFrame:
    inside = samples["domain"] == "in"
    return samples[inside & (samples["temperature"] == params.promotion.temperature)]


def _win_rates(settings: CompareSettings, verdicts: pd.DataFrame) -> dict[str, Estimate | None]:
    """Plain and length-controlled."""
    controlled = length_controlled_win_rate(
        verdicts["preference"],
        verdicts["completion_tokens_a"],
        verdicts["completion_tokens_b"],
        verdicts["prompt_id"],
        **settings.resampling,
    )
    return {"win_rate": won(verdicts, settings), "length_controlled_win_rate": controlled}


def _kl(params: Params, samples: pd.DataFrame) -> Estimate | None:
    """None where a sample's is not known: a policy that has gone astray may have none."""
    inside = samples["domain"] == "in"
    own = samples[inside & (samples["temperature"] == KL_TEMPERATURE)]
    if not np.isfinite(own["kl"]).all():
        return None
    return interval(own["kl"], own["prompt_id"], params.compare)


def _task_rules(
    params: Params, challenger: Mapping[str, Any], champion: Mapping[str, Any]
) -> list[Rule]:
    """A rule for each task and metric, of those too that one of them lacks by document, or both."""
    margins = params.promotion.margins or {}
    ours, theirs = (one.get("documents", {}) for one in (challenger, champion))
    # A group of tasks has no documents of its own: its tasks do, under their names.
    groups = {task for one in (challenger, champion) if ours for task in one.get("results", {})}
    lacking = set(params.benchmark.tasks) - set(ours) - groups
    judged = sorted({*ours, *theirs, *lacking})
    if not judged:
        return [nothing_measured()]
    unknown = sorted(set(margins) - {"default", *judged})
    if unknown:
        raise UserError(
            f"promotion.margins in params.yaml names {', '.join(unknown)}, of which there are no "
            f"results; it may name {', '.join(judged)} (of a group of tasks, each of its tasks)"
        )
    found = []
    for task in judged:
        margin = margins.get(task, margins["default"])
        if margin is None:
            continue
        better = challenger.get("higher_is_better", {}).get(task, {})
        for metric, difference in _differences(params, ours.get(task), theirs.get(task)):
            up = higher_is_better(better, metric)
            found.append(not_worse(task, metric, difference, margin, higher_is_better=up))
        if task in ours and task in theirs:
            told = [one.get("results", {}).get(task, {}) for one in (challenger, champion)]
            found += [
                unpaired(task, metric, margin)
                for metric in _without_documents(told, [ours[task], theirs[task]])
            ]
    return found


def _without_documents(told: list[Mapping[str, float]], documents: list[Any]) -> list[str]:
    """The metrics that a task has of all documents at once alone; `results`: it has none."""
    by_document = {name for one in documents for name in one["results"]}
    metrics = {name for one in told for name in one if not name.endswith("_stderr")}
    return sorted(metrics - by_document) or ([] if by_document else ["results"])


def _against_sft(rule: Rule) -> Rule:
    """A task's rule under a name of its own, beside the one against the champion."""
    return rule._replace(name=f"{rule.name} against SFT", reason=f"Against SFT: {rule.reason}")


def _differences(params: Params, ours: Any, theirs: Any) -> Iterator[tuple[str, Estimate | None]]:
    """By metric, challenger less champion; None where they can't be paired."""
    if ours is None or theirs is None or ours["hash"] != theirs["hash"]:
        yield "documents", None
        return
    redundant = set(OF_MEAN_LOGLIKELIHOOD) - {ONE_PERPLEXITY}
    names = {*ours["results"], *theirs["results"]}
    for metric in sorted(names - redundant if ONE_PERPLEXITY in names else names):
        a, b = (np.asarray(one["results"].get(metric, [])) for one in (ours, theirs))
        if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
            yield metric, None
            continue
        settings, clusters = params.compare, ours.get("clusters")
        found = paired_difference(a, b, metric, clusters, **settings.resampling).difference
        if metric not in OF_MEAN_LOGLIKELIHOOD:
            found = no_surer_than_alike(found, a, b, clusters, confidence=settings.confidence)
        yield metric, found


def _siblings(params: Params, arm: Arm) -> list[Arm]:
    """The compared arms of the same setting, apart from the seed; the arm itself among them."""
    setting = arm.model_copy(update={"seed": None})
    return [
        other for other in _compared(params) if other.model_copy(update={"seed": None}) == setting
    ]


def _compared(params: Params) -> list[Arm]:
    compared = {row["arm"] for row in read_json("out/compare/estimates.json")["rows"]}
    return [arm for arm in arms(params) if arm.name in compared]


def _accuracy() -> Estimate | None:
    """Of the reward model on the held-out pairs, at `compare.confidence`."""
    known = read_json("out/compare/estimates.json").get("reward_model")
    if known is None:
        return None
    low, high = (math.nan if known[end] is None else known[end] for end in ("low", "high"))
    return Estimate(known["accuracy"], math.nan, low, high)


def _controls(params: Params) -> Rule:
    """Of the judge in use; another's controls say nothing about it."""
    asked = params.compare.judge == "llm"
    # An endpoint may filter `injection` out, and then no answer that says such a thing can win.
    needed = ["null", "self", "longest", *(["order"] if asked else [])]
    if not (JUDGEMENTS / "summary.json").exists():
        return controls_passed(None, needed)
    about = read_json(JUDGEMENTS / "summary.json")
    llm = params.compare.llm if asked else None
    if (about["judge"], about["model"]) != (params.compare.judge, llm.model if llm else None):
        return controls_passed(None, needed)
    results = {row["control"]: row["passed"] for row in about["controls"]["rows"]}
    return controls_passed(results, needed)
