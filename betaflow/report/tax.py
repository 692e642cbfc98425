"""lm-eval results against SFT's, paired by document: the columns, and the report's section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from betaflow.config import CompareSettings
from betaflow.errors import UserError
from betaflow.evaluation.alignment_tax import (
    TaskDifference,
    alignment_tax,
    higher_is_better,
    task_differences,
)
from betaflow.evaluation.bootstrap import Estimate
from betaflow.report import text
from betaflow.report.estimates import SFT, Row, spread

# Scored on what alignment trains for, so that a gain there would hide a loss elsewhere.
TRAINED_FOR = ("betaflow_preference",)
ENDS = ("", "_low", "_high")

Benchmarks = Mapping[str, Mapping[str, Any]]


def taxes(benchmarks: Benchmarks, settings: CompareSettings) -> dict[str, Any]:
    """Every arm's differences from SFT, and its alignment tax.

    Args:
        benchmarks: by arm name, its `out/benchmark/<arm>.json`.
        settings: how to resample.

    Returns:
        `rows`: of each arm, task and metric the `difference` (arm less SFT), the `p_value` and the
        `adjusted` one over all rows, and the number of `documents`. `taxed`: the tasks, with the
        metric of each, that the tax is the mean loss of: those whose documents have results from 0
        to 1, the first such metric by name, without what alignment trains for. `arms`: of each its
        `alignment_tax`; tasks of the same documents count as one. All empty where no documents were
        kept.

    Raises:
        UserError: an arm was benchmarked on other documents than SFT, or a result is not finite.
    """
    documents = {name: found.get("documents", {}) for name, found in benchmarks.items()}
    others = {name: tasks for name, tasks in documents.items() if name != SFT}
    try:
        found = task_differences(
            others,
            documents[SFT],
            **settings.resampling,
        )
    except ValueError as error:
        raise UserError(f"{error}; delete out/benchmark and run again") from None
    taxed = _taxed(documents[SFT])
    better = benchmarks[SFT].get("higher_is_better", {})
    hashes = {task: about["hash"] for task, about in documents[SFT].items()}
    return {
        "rows": [_row(one) for one in found],
        "taxed": [{"task": task, "metric": metric} for task, metric in taxed.items()],
        "arms": [
            {"arm": name, **spread("alignment_tax", _tax(found, name, taxed, better, hashes))}
            for name in others
            if taxed and any(one.arm == name for one in found)
        ],
    }


def _taxed(documents: Mapping[str, Any]) -> dict[str, str]:
    """By task, the metric that counts."""
    found = {}
    for task, about in sorted(documents.items()):
        shares = [name for name, values in sorted(about["results"].items()) if _shares(values)]
        if shares and task not in TRAINED_FOR:
            found[task] = shares[0]
    return found


def _shares(values: Sequence[Any]) -> bool:
    results = np.asarray(values, dtype=np.float64)
    return results.ndim == 1 and len(results) > 0 and bool(((results >= 0) & (results <= 1)).all())


def _tax(
    found: Sequence[TaskDifference],
    arm: str,
    taxed: Mapping[str, str],
    better: Mapping[str, Mapping[str, bool]],
    hashes: Mapping[str, str],
) -> Estimate:
    """`alignment_tax`, which asks for independent tasks: those of the same documents are one.

    Its ends are the means of theirs, which hold however alike the tasks' results are.
    """
    same: dict[str, list[Estimate]] = {}
    for one in found:
        if one.arm == arm and taxed.get(one.task) == one.metric:
            down = higher_is_better(better.get(one.task, {}), one.metric) is False
            own = _negative(one.difference) if down else one.difference
            same.setdefault(hashes[one.task], []).append(own)
    return alignment_tax(Estimate(*np.mean(tasks, axis=0).tolist()) for tasks in same.values())


def _negative(found: Estimate) -> Estimate:
    return Estimate(-found.estimate, found.standard_error, -found.high, -found.low)


def _row(one: TaskDifference) -> Row:
    return {
        "arm": one.arm,
        "task": one.task,
        "metric": one.metric,
        **spread("difference", one.difference),
        "p_value": one.p_value,
        "adjusted": one.adjusted,
        "documents": one.documents,
    }


def with_taxes(rows: Sequence[Row], found: Mapping[str, Any]) -> list[Row]:
    """Rows with `alignment_tax` and, of each task and metric, `task/metric_vs_sft`, both with
    `_low` and `_high`, and the difference's adjusted p-value, `task/metric_vs_sft_p`.

    SFT's own are NaN, and those of arms without a model. Of the tax all are, without benchmarks.
    """
    names = [f"alignment_tax{end}" for end in ENDS]
    nothing = dict.fromkeys(names, float("nan"))
    tax = {row["arm"]: {name: row[name] for name in names} for row in found["arms"]}
    columns: dict[str, Row] = {}
    for row in found["rows"]:
        name = f"{row['task']}/{row['metric']}_vs_sft"
        own = columns.setdefault(row["arm"], {})
        own |= {name + end: row[f"difference{end}"] for end in ENDS}
        own[f"{name}_p"] = row["adjusted"]
    return [row | tax.get(row["arm"], nothing) | columns.get(row["arm"], {}) for row in rows]


def tax_section(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Scores, differences and taxes as texts, an arm a row; None without benchmarks.

    `document` is `estimates.json`.
    """
    found, better = document["alignment_tax"], document["benchmarks"]["higher_is_better"]
    first: dict[str, Row] = {}
    for row in document["rows"]:
        first.setdefault(row["arm"], row)
    names = scores(document["rows"])
    if not names:
        return None
    counts = {(row["task"], row["metric"]): row["documents"] for row in found["rows"]}
    differences = {(row["arm"], row["task"], row["metric"]): row for row in found["rows"]}
    tax = {row["arm"]: row for row in found["arms"]}
    return {
        "taxed": [f"{one['task']} ({one['metric']})" for one in found["taxed"]],
        "left_out": [task for task in TRAINED_FOR if task in {name for name, _ in names}],
        "tests": len(found["rows"]),
        "columns": [
            {
                "task": task,
                "metric": f"{metric} {arrow(better, task, metric)}".strip(),
                "documents": text.number(counts.get((task, metric)), 0),
            }
            for task, metric in names
        ],
        "rows": [
            {
                "arm": arm,
                "tax": _percent(tax.get(arm)),
                "cells": [
                    _score(row, f"{task}/{metric}")
                    | difference(differences.get((arm, task, metric)))
                    for task, metric in names
                ],
            }
            for arm, row in first.items()
            if any(row.get(f"{task}/{metric}") is not None for task, metric in names)
        ],
    }


def scores(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The tasks and metrics that the rows have scores of."""
    ends = ("_stderr", "_vs_sft", "_low", "_high", "_p")
    names = {key for row in rows for key in row if "/" in key and not key.endswith(ends)}
    return sorted((name.split("/", 1)[0], name.split("/", 1)[1]) for name in names)


def arrow(better: Mapping[str, Any], task: str, metric: str) -> str:
    """Which way is better: ↑ or ↓, nothing where lm-eval does not say."""
    up = higher_is_better(better.get(task, {}), metric)
    return "" if up is None else "↑" if up else "↓"


def _percent(row: Row | None) -> dict[str, str]:
    if row is None:
        return {"value": text.DASH, "interval": ""}
    return text.estimate(row, "alignment_tax", 1, 100.0)


def _score(row: Row, name: str) -> dict[str, str]:
    """`value` and standard `error`, to two digits of the error."""
    value, error = row.get(name), row.get(f"{name}_stderr")
    if value is None or not error:
        return {"value": text.significant(value), "error": ""}
    digits = text.decimals(error)
    return {"value": text.number(value, digits), "error": text.number(error, digits)}


def difference(row: Row | None) -> dict[str, str]:
    """`change` with its interval, and `p`, adjusted."""
    if row is None:
        return {"change": "", "p": ""}
    low, high, p = row["difference_low"], row["difference_high"], row["adjusted"]
    change = text.significant(row["difference"])
    if low is not None and high is not None:
        digits = text.decimals((high - low) / 2)
        middle, below, above = (f"{x:+.{digits}f}" for x in (row["difference"], low, high))
        change = f"{middle} [{below}, {above}]"
    return {
        "change": change,
        "p": "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}",
    }
