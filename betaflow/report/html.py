"""report.html: one file that needs no network, no script and no explanation."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from betaflow.config import Arm, Params
from betaflow.errors import UserError
from betaflow.report import text
from betaflow.report.estimates import Row, judge_column
from betaflow.report.headline import Document, sentences
from betaflow.report.plots import PLOTS, REWARDS, alt_texts

PIXELS = 1.5  # of a plot to one of the page, for sharp screens
TITLES = {
    "reward_kl": "Reward against KL",
    "win_rate": "Win rate against temperature",
    "training_dpo": "Training of the DPO arms",
    "training_ppo": "Training of the PPO arms",
}
SOURCES = {
    "world": "the embedded world of short movie reviews, whose gold reward is known exactly",
    "hh": "human preferences between HH dialogues",
    "jsonl": "preference pairs from a JSONL file",
    "parquet": "preference pairs from a Parquet file",
    "hub": "a preference data set of the hub",
}
# title, column, decimals, scale; the page explains them below the table
COLUMNS = [
    ("gold reward", "gold_reward", 2, 1.0),
    ("reward model", "reward_model", 2, 1.0),
    ("KL, nats", "kl", 2, 1.0),
    ("win % vs SFT", "win_rate_vs_sft", 1, 100.0),
    ("win % vs PPO", "win_rate_vs_ppo", 1, 100.0),
    ("gold reward, other domain", "gold_reward_ood", 2, 1.0),
    ("tokens", "completion_tokens", 1, 1.0),
    ("ended %", "finished", 1, 100.0),
]


def render_html(
    params: Params,
    document: Document,
    arms: Sequence[Arm],
    samples: Mapping[str, pd.DataFrame],
    *,
    plots: Path,
    facts: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> str:
    """The page, as text.

    Args:
        params: the settings that the arms were trained under.
        document: `estimates.json`, its rows with `train_seconds`.
        arms: the sweep.
        samples: by arm name, its scored completions.
        plots: the folder with the PNGs.
        facts: sizes, by stage (`data`, `pairs`, `sft`), each optional.
        seconds: wall time by arm or stage name, as far as known.
    """
    rows = document["rows"]
    main = [row for row in rows if row["temperature"] == document["temperature"]]
    source = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source).render(
        about=about(params, arms, facts),
        sentences=sentences(document),
        temperature=f"{document['temperature']:g}",
        level=f"{document['confidence']:.0%}",
        resamples=document["bootstrap"],
        judge=document["judge"],
        judge_title=REWARDS[document["judge"]],
        ppo_arm=document["ppo_arm"],
        prompts=main[0]["prompts"],
        samples=main[0]["samples"],
        table=table(main, document["best"]),
        whole=table(rows, ""),
        plots=images(plots, alt_texts(document)),
        benchmarks=benchmark_table(document),
        documents=_documents(document),
        prompts_shown=side_by_side(arms, samples, params),
        reward_seconds=text.number(seconds.get("reward"), 0),
        has_gold=any(row["gold_reward"] is not None for row in rows),
    )


def about(params: Params, arms: Sequence[Arm], facts: Mapping[str, Any]) -> str:
    """What was compared, in a paragraph."""
    count = {method: sum(arm.method == method for arm in arms) for method in ("dpo", "ppo")}
    betas = dict.fromkeys(f"{arm.beta:g}" for arm in arms if arm.method == "dpo")
    compared = f"{_many(count['dpo'], 'DPO arm')} (β = {', '.join(betas)}) and "
    compared += f"{_many(count['ppo'], 'PPO arm')}, all started from one supervised fine-tuned "
    compared += f"reference (SFT) of {_model(params, facts)}."
    path = f" ({params.data.path})" if params.data.path else ""
    parts = [compared, f"The data are {SOURCES[params.data.source]}{path}."]
    sizes = [
        (text.counted(facts, "data", "kept", "sft_train"), "texts to fine-tune on"),
        (text.counted(facts, "pairs", "train", "pairs"), "preference pairs to train on"),
        (text.counted(facts, "pairs", "eval", "pairs"), "held out"),
    ]
    known = [f"{value:,} {name}" for value, name in sizes if isinstance(value, int)]
    if known:
        parts.append(f"{', '.join(known)}.")
    return " ".join(parts)


def table(rows: Sequence[Row], best: str) -> list[dict[str, Any]]:
    """Rows as texts: the arm, its estimates (`COLUMNS`), tokens trained and seconds."""
    shown = [item for item in COLUMNS if any(row[item[1]] is not None for row in rows)]
    return [
        {
            "arm": row["arm"],
            "best": row["arm"] == best,
            "temperature": f"{row['temperature']:g}",
            "cells": [
                {"title": title, **text.estimate(row, name, digits, scale)}
                for title, name, digits, scale in shown
            ],
            "train_tokens": text.number(row["train_tokens"], 0),
            "train_seconds": text.number(row["train_seconds"], 0),
        }
        for row in rows
    ]


def images(folder: Path, alternatives: Mapping[str, str]) -> list[dict[str, Any]]:
    """Plots as base64 with a title, an alternative text and the width to show them at."""
    found = []
    for name in PLOTS:
        path = folder / f"{name}.png"
        if not path.exists():
            raise UserError(f"{path} is missing; run `dvc repro -f -s compare` to draw it again")
        content = path.read_bytes()
        width = int.from_bytes(content[16:20], "big")  # of the PNG's first chunk, in pixels
        found.append(
            {
                "title": TITLES[name],
                "alt": alternatives[name],
                "data": base64.b64encode(content).decode("ascii"),
                "width": int(width / PIXELS),
            }
        )
    return found


def benchmark_table(document: Document) -> list[dict[str, Any]]:
    """A row per lm-eval task and metric, a cell per arm: score ± standard error, change."""
    first = {row["arm"]: row for row in reversed(document["rows"])}
    arms = list(dict.fromkeys(row["arm"] for row in document["rows"]))
    names = sorted(
        {key.removesuffix("_vs_sft") for row in first.values() for key in row if "/" in key}
    )
    better = document["benchmarks"]["higher_is_better"]
    rows = []
    for name in names:
        if name.endswith("_stderr"):
            continue
        task, metric = name.split("/", 1)
        arrow = {True: "↑", False: "↓"}.get(text.counted(better, task, metric), "")
        cells = [
            {
                "arm": arm,
                "value": text.significant(first[arm].get(name)),
                "error": text.significant(first[arm].get(f"{name}_stderr")).strip(text.DASH),
                "change": "" if arm == "sft" else text.difference(first[arm].get(f"{name}_vs_sft")),
            }
            for arm in arms
        ]
        rows.append({"task": task, "metric": f"{metric} {arrow}".strip(), "cells": cells})
    return rows


def side_by_side(
    arms: Sequence[Arm], samples: Mapping[str, pd.DataFrame], params: Params
) -> list[dict[str, Any]]:
    """The first `compare.report_samples` in-domain prompts with every arm's first T = 1 sample."""
    judge = judge_column(params.compare)
    at_one = {
        name: table[(table["domain"] == "in") & (table["temperature"] == 1.0)]
        for name, table in samples.items()
    }
    seed = at_one["sft"]["seed"].min()
    firsts = {
        name: table[table["seed"] == seed].drop_duplicates("prompt_id").set_index("prompt_id")
        for name, table in at_one.items()
    }
    found = []
    for prompt in firsts["sft"].index[: params.compare.report_samples]:
        completions = []
        for arm in arms:
            row = firsts[arm.name].loc[prompt]
            completions.append(
                {
                    "arm": arm.name,
                    "text": text.visible(str(row["completion"])),
                    "reward": text.number(float(row[judge]), 2),
                    "tokens": int(row["completion_tokens"]),
                    "cut": row["finish_reason"] != "stop",
                }
            )
        prompt_text = text.visible(str(firsts["sft"].loc[prompt, "prompt"]))
        found.append({"prompt": prompt_text, "completions": completions})
    return found


def _documents(document: Document) -> list[dict[str, Any]]:
    """Documents a task that lm-eval scored."""
    found = []
    for task, count in sorted(document["benchmarks"]["n_samples"].items()):
        if isinstance(count, Mapping):  # lm-eval's own form
            count = count.get("effective")
        found.append({"task": task, "count": count})
    return found


def _model(params: Params, facts: Mapping[str, Any]) -> str:
    parameters = text.counted(facts, "sft", "parameters")
    size = f", {parameters / 1e6:,.1f} million parameters" if isinstance(parameters, int) else ""
    scratch = params.model.scratch
    if params.model.base == "scratch" and scratch is not None:
        return (
            f"a small Llama trained from nothing ({scratch.layers} layers, width "
            f"{scratch.hidden}{size})"
        )
    return f"{params.model.base}{size}"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
