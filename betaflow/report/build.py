"""Everything under out/ -> estimates.json, metrics.json, figures, tables and the report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from betaflow.config import Arm, Params
from betaflow.errors import UserError
from betaflow.evaluation.calibration import calibration
from betaflow.evaluation.promotion import candidates, simultaneous
from betaflow.io import atomic_file, read_json, read_jsonl, write_json
from betaflow.report.estimates import (
    KL_TEMPERATURE,
    SFT,
    Row,
    at,
    estimates,
    inside,
    judge_column,
    judged,
    ppo_arm,
)
from betaflow.report.headline import best_row, leads
from betaflow.report.html import render_html
from betaflow.report.inputs import OUT, read_arms, read_samples, read_table
from betaflow.report.judgements import with_verdicts
from betaflow.report.length import with_length_control
from betaflow.report.pairwise import COLUMNS as PAIRWISE
from betaflow.report.pairwise import pairwise, with_ratings
from betaflow.report.plots import Metrics, write_plots
from betaflow.report.power import power
from betaflow.report.quality import with_text_quality
from betaflow.report.rendered import note_rendered
from betaflow.report.sections import write_figures
from betaflow.report.table import tidy, with_seconds, write_csv, write_tables
from betaflow.report.tax import taxes, with_taxes

IDENTITY = {"arm", *Arm.model_fields, "temperature"}
# Of figures.csv, from which `dvc plots` draws; `reward` is the judge's.
ENDS = ("", "_low", "_high")
FIGURE_COLUMNS = ["arm", "method", "temperature", "prompts", "samples"]
FIGURE_COLUMNS += [
    f"{name}{end}"
    for name in ("kl", "reward", "win_rate_vs_sft", "win_rate_vs_ppo")
    for end in ENDS
]


def build(params: Params, folder: Path, *, out: Path = OUT) -> list[Row]:
    """Write what is a function of the stages' outputs: the same inputs give the same bytes.

    Args:
        params: settings; read here are `compare`, `promotion` and `sample.temperatures`.
        folder: an existing folder that gets `estimates.json`, `metrics.json`, `pairwise.csv`,
            `figures.csv` and `plots/*.png`.
        out: where the stages' outputs lie.

    Returns:
        A row per arm and temperature, floats rounded, None where nothing was measured.

    Raises:
        UserError: an input is missing or does not fit the others.
    """
    arms = read_arms(out)
    samples = _judged_samples(params, arms, out)
    models = [arm for arm in arms if arm.has_model]
    trained = [arm for arm in models if arm.method != "sft"]
    summaries = {arm.name: read_json(_model(arm, out) / "summary.json") for arm in models}
    benchmarks = {arm.name: read_json(out / "benchmark" / f"{arm.name}.json") for arm in models}
    if not trained:
        raise UserError("out/arms.json lists no trained arm; run `dvc repro arms`")
    shared = {name: read_json(out / name / "summary.json") for name in ("reference", "reward")}
    beside = read_json(out / "frontier" / "frontier.json")
    about_judge = read_json(out / "judgements" / "summary.json")
    temperature = params.promotion.temperature
    pairs = pairwise(arms, samples, params.compare, temperature)
    tax = taxes(benchmarks, params.compare)
    found = estimates(arms, samples, summaries | shared, benchmarks, params.compare)
    found = with_length_control(found, arms, samples, params.compare)
    found = with_text_quality(found, samples, params.compare)
    found = with_taxes(with_ratings(found, pairs), tax)
    rows: list[Row] = tidy(with_fractions(found, beside["arms"]))
    best = best_row(rows, temperature)["arm"]
    document = {
        "judge": params.compare.judge,
        "judgements": about_judge,
        "confidence": params.compare.confidence,
        "bootstrap": params.compare.bootstrap,
        "temperature": temperature,
        "ppo_arm": ppo_arm(arms),
        "best": best,
        "fingerprints": {name: about.get("fingerprint") for name, about in summaries.items()},
        "leads": tidy(leads(best, models, samples, params)),
        "pairwise": tidy(pairs),
        "power": tidy(_power(best, models, samples, params)),
        "benchmarks": _about_benchmarks(benchmarks),
        "alignment_tax": tidy(tax),
        "reward_model": tidy(_reward_model(out, params.compare.confidence)),
        "rows": rows,
    }
    write_json(folder / "estimates.json", document)
    write_json(folder / "metrics.json", flat_metrics(rows, temperature))
    write_csv(tidy(pairs)["rows"], PAIRWISE, folder / "pairwise.csv")
    reward = judge_column(params.compare)
    drawn = [row | {f"reward{end}": row[f"{reward}{end}"] for end in ENDS} for row in rows]
    write_csv(drawn, FIGURE_COLUMNS, folder / "figures.csv")
    (folder / "plots").mkdir(exist_ok=True)
    write_plots(document, _metrics(arms, out), folder / "plots")
    write_figures(document, folder / "plots")
    if beside["optimum"] is not None:
        shutil.copyfile(out / "frontier" / "frontier.png", folder / "plots" / "frontier.png")
    return rows


def render(params: Params, folder: Path, *, out: Path = OUT) -> list[Row]:
    """Write table.csv, table.json and report.html from what `build` left in `folder`.

    Apart from `build`'s numbers these hold wall time, measured once on this machine
    (`out/.local/timings`), and so are not hashed.

    Returns:
        The table's rows: `build`'s with `train_seconds` and `whole_seconds`.
    """
    arms = read_arms(out)
    document = read_json(folder / "estimates.json")
    seconds = read_seconds(arms, out)
    rows = with_seconds(document["rows"], seconds)
    write_tables(rows, folder)
    samples = _judged_samples(params, arms, out)
    text = render_html(
        params,
        {**document, "rows": rows},
        arms,
        samples,
        plots=folder / "plots",
        frontier=read_json(out / "frontier" / "frontier.json"),
        metrics=_metrics(arms, out),
        facts=_facts(out),
        seconds=seconds,
    )
    with atomic_file(folder / "report.html") as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    note_rendered(folder, out)
    return rows


def _power(
    arm: str, models: Sequence[Arm], samples: Mapping[str, pd.DataFrame], params: Params
) -> dict[str, Any]:
    """`power` of an arm's promotion by its verdicts at the headline's temperature."""
    here = [params.promotion.temperature]
    own, sft = (at(inside(samples, name), here) for name in (arm, SFT))
    verdicts = judged(own, sft, params.compare, SFT)
    (challenger,) = [model for model in models if model.name == arm]
    others = candidates(models, params.promotion.methods, challenger)
    confidence = simultaneous(params.compare.confidence, len(others))
    return power(arm, verdicts, confidence, params.promotion.detect)


def _reward_model(out: Path, confidence: float) -> dict[str, Any] | None:
    """The reward model's calibration on held-out pairs; None where there are none."""
    found = pd.read_parquet(out / "reward" / "held_out.parquet")
    if not len(found):
        return None
    prompts = {row["id"]: row["prompt"] for row in read_jsonl(out / "pairs" / "eval.jsonl")}
    return calibration(found["margin"], found["id"].map(prompts), confidence=confidence)


def with_fractions(rows: Sequence[Row], arms: Sequence[Row]) -> list[Row]:
    """Rows with `optimum_fraction` and its interval, of the arms of `frontier.json`.

    At T = 1 alone: the optimum is about a policy, which is its distribution there.
    """
    known = {(arm["arm"], KL_TEMPERATURE): [arm[f"fraction{end}"] for end in ENDS] for arm in arms}
    names = [f"optimum_fraction{end}" for end in ENDS]
    return [
        row | dict(zip(names, known.get((row["arm"], row["temperature"]), [None] * 3), strict=True))
        for row in rows
    ]


def read_seconds(arms: Sequence[Arm], out: Path = OUT) -> dict[str, float]:
    """By arm or stage name, its training's wall time, where that very training was done here."""
    folders = {arm.name: _model(arm, out) for arm in arms if arm.has_model}
    folders |= {name: out / name for name in ("reference", "reward")}
    found = {}
    for name, folder in folders.items():
        path, about = out / ".local" / "timings" / f"{name}.json", folder / "summary.json"
        if not path.exists() or not about.exists():
            continue
        timing = read_json(path)
        if timing.get("fingerprint") == read_json(about).get("fingerprint"):
            found[name] = float(timing["train_seconds"])
    return found


def flat_metrics(rows: Sequence[Row], temperature: float) -> dict[str, dict[str, Any]]:
    """By arm, its numbers at one temperature, for `dvc metrics`.

    Intervals and p-values stay in the table.
    """
    return {
        row["arm"]: {
            name: value
            for name, value in row.items()
            if name not in IDENTITY
            and not name.endswith(("_low", "_high", "_stderr", "_vs_sft_p"))
            and value is not None
        }
        for row in rows
        if row["temperature"] == temperature
    }


def _judged_samples(params: Params, arms: Sequence[Arm], out: Path) -> dict[str, pd.DataFrame]:
    """By arm name, its scored completions, with verdicts where a language model judges."""
    samples = read_samples(arms, out)
    if params.compare.judge != "llm":
        return samples
    return with_verdicts(samples, read_table(out / "judgements" / "verdicts.parquet"))


def _metrics(arms: Sequence[Arm], out: Path) -> Metrics:
    """By name, the log of each arm's own training."""
    own = [arm for arm in arms if arm.has_model and arm.method != "sft"]
    return {arm.name: read_jsonl(_model(arm, out) / "metrics.jsonl") for arm in own}


def _model(arm: Arm, out: Path) -> Path:
    return out / arm.model_dir.relative_to("out")


def _about_benchmarks(benchmarks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is the same for every arm: documents a task and which way is better."""
    first = next(iter(benchmarks.values()), {})
    return {key: first.get(key, {}) for key in ("n_samples", "higher_is_better")}


def _facts(out: Path) -> dict[str, Any]:
    """Sizes for the report's opening paragraph; what is not there is left out."""
    facts = {}
    for name, path in [
        ("data", out / "data" / "statistics.json"),
        ("pairs", out / "pairs" / "statistics.json"),
        ("sft", out / "sft" / "summary.json"),
    ]:
        if path.exists():
            facts[name] = read_json(path)
    return facts
