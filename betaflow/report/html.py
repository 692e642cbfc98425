"""report.html: one file that needs no network, no script and no explanation."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from betaflow.config import Arm, Params, trials
from betaflow.errors import UserError
from betaflow.report import text
from betaflow.report.estimates import Row, judge_column
from betaflow.report.frontier_plot import alt_text
from betaflow.report.headline import Document, sentences
from betaflow.report.judge_section import judge_section, judge_sentences
from betaflow.report.length import length_sentences
from betaflow.report.methods import LABELS, SCORERS, STRENGTHS
from betaflow.report.plots import REWARDS, alt_texts, titles
from betaflow.report.power import enough, sentence
from betaflow.report.sections import sections

PIXELS = 1.5  # of a plot to one of the page, for sharp screens
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
    ("% of the optimum", "optimum_fraction", 0, 100.0),
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
    frontier: Mapping[str, Any],
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
        frontier: `frontier.json`; its figure is among the plots where there is an optimum.
        facts: sizes, by stage (`data`, `pairs`, `sft`), each optional.
        seconds: wall time by arm or stage name, as far as known.
    """
    rows = document["rows"]
    main = [row for row in rows if row["temperature"] == document["temperature"]]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        about=about(params, arms, facts),
        sentences=[
            *sentences(document),
            *length_sentences(document),
            *judge_sentences(document["judgements"]),
            *([] if enough(document["power"]) else [sentence(document["power"])]),
        ],
        temperature=f"{document['temperature']:g}",
        level=f"{document['confidence']:.0%}",
        resamples=document["bootstrap"],
        judge=document["judge"],
        score_title=REWARDS[document["judge"]],
        asked=judge_section(document["judgements"]),
        ppo_arm=document["ppo_arm"],
        prompts=main[0]["prompts"],
        samples=main[0]["samples"],
        table=table(main, document["best"]),
        whole=table(rows, ""),
        trials=trial_table(arms),
        plots=images(plots, titles(document), alt_texts(document)),
        frontier=against_optimum(frontier, plots),
        **sections(document, partial(images, plots)),
        prompts_shown=side_by_side(arms, samples, params),
        reward_seconds=text.number(seconds.get("reward"), 0),
        has_gold=any(row["gold_reward"] is not None for row in rows),
    )


def about(params: Params, arms: Sequence[Arm], facts: Mapping[str, Any]) -> str:
    """What was compared, in a paragraph."""
    counts = Counter(arm.method for arm in arms if arm.method != "sft")
    kinds = [_many(count, f"{LABELS[method]} arm") for method, count in counts.items()]
    *others, last = kinds
    compared = f"{', '.join(others)} and {last}" if others else last
    compared += ", all started from one supervised fine-tuned "
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
            "whole_flops": text.power(row["whole_flops"]),
            "whole_seconds": text.number(row["whole_seconds"], 0),
        }
        for row in rows
    ]


def against_optimum(frontier: Mapping[str, Any], plots: Path) -> dict[str, Any] | None:
    """The figure of `frontier.json`, its methods' shares and what it warns of; None without."""
    best = frontier["optimum"]
    if best is None:
        return None
    title = "Reward against KL, and the closed-form optimum"
    (figure,) = images(plots, {"frontier": title}, {"frontier": alt_text(frontier)})
    columns = [("its arms", "area"), ("all looks", "looks_area")]
    shown = [
        item for item in columns if any(row[item[1]] is not None for row in frontier["methods"])
    ]
    return {
        "figure": figure,
        "draws": f"{best['draws']:,}",
        "trusted_kl": f"{best['trusted_kl']:.2f}",
        "violations": frontier["violations"],
        "titles": [title for title, _ in shown],
        "methods": [
            {
                "method": row["method"],
                "range": f"{row['low_kl']:g} to {row['high_kl']:.3g}",
                "cells": [text.estimate(row, name, 0, 100.0) for _, name in shown],
            }
            for row in frontier["methods"]
            if shown
        ],
    }


def trial_table(arms: Sequence[Arm]) -> list[dict[str, str]]:
    """By method: tuning trials, seeds of each, and the values tried, as texts."""
    names = [*STRENGTHS, ("target_kl", "target KL"), ("scorer", "by"), ("learning_rate", "rate")]
    rows = []
    for method, count in trials(arm for arm in arms if arm.method != "sft").items():
        own = [arm for arm in arms if arm.method == method]
        tried = []
        for name, symbol in names:
            values = dict.fromkeys(getattr(arm, name) for arm in own)
            known = [SCORERS.get(value, str(value)) for value in values if value is not None]
            if known:
                tried.append(f"{symbol}: {', '.join(known)}")
        seeds = len({arm.seed for arm in own if arm.seed is not None})
        rows.append(
            {
                "method": LABELS[method],
                "trials": str(count),
                "seeds": str(seeds) if seeds else text.DASH,
                "tried": "; ".join(tried),
            }
        )
    return rows


def images(
    folder: Path, titles: Mapping[str, str], alternatives: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Plots as base64 with a title, an alternative text and the width to show them at."""
    found = []
    for name, title in titles.items():
        path = folder / f"{name}.png"
        if not path.exists():
            raise UserError(f"{path} is missing; run `dvc repro -f -s compare` to draw it again")
        content = path.read_bytes()
        width = int.from_bytes(content[16:20], "big")  # of the PNG's first chunk, in pixels
        found.append(
            {
                "title": title,
                "alt": alternatives[name],
                "data": base64.b64encode(content).decode("ascii"),
                "width": int(width / PIXELS),
            }
        )
    return found


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
