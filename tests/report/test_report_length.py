"""Length-controlled win rates and text quality: their columns and their sections."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from betaflow.config import Arm, CompareSettings
from betaflow.evaluation import length_controlled_win_rate, text_quality
from betaflow.report.length import length_section, length_sentences, with_length_control
from betaflow.report.quality import quality_section, with_text_quality
from betaflow.report.table import tidy

SETTINGS = CompareSettings(judge="gold", bootstrap=200, confidence=0.95, seed=0, report_samples=1)
SFT = Arm(method="sft")
DPO = Arm(method="dpo", beta=0.1, learning_rate=0.001, seed=0)
BEST = Arm(method="best_of_n", scorer="gold", n=4)
ARMS = [SFT, DPO, BEST]
RANDOM = np.random.default_rng(0)


def samples(prompts: int, reward: float, temperatures: tuple[float, ...]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = [
        {"prompt_id": f"p{prompt}", "domain": domain, "temperature": t, "seed": seed}
        for domain in ("in", "out")
        for prompt in range(prompts)
        for t in temperatures
        for seed in range(2)
    ]
    table = pd.DataFrame(rows)
    longer = RANDOM.integers(0, 20, len(table))
    return table.assign(
        completion_tokens=20 + longer,
        gold_reward=reward + longer / 10 + RANDOM.normal(size=len(table)),
        completion=["a b c d a b c d e"] * len(table),
        finish_reason=np.where(np.arange(len(table)) % 4, "stop", "length"),
    )


def tables(prompts: int = 20) -> dict[str, pd.DataFrame]:
    return {
        "sft": samples(prompts, 0.0, (0.5, 1.0)),
        DPO.name: samples(prompts, 1.0, (0.5, 1.0)),
        # In another order, and at one temperature.
        BEST.name: samples(prompts, 2.0, (1.0,)).iloc[::-1],
    }


def rows() -> list[dict[str, Any]]:
    return [
        {"arm": arm.name, "temperature": t, "win_rate_vs_sft": 0.5, "completion_tokens": 9.0}
        | {
            "prompts": 20,
            "samples": 40,
            "win_rate_vs_sft_prompts": 20,
            "win_rate_vs_sft_verdicts": 40,
        }
        | {"win_rate_vs_sft_low": 0.4, "win_rate_vs_sft_high": 0.6}
        for arm in ARMS
        for t in ((1.0,) if arm.n else (0.5, 1.0))
    ]


def test_the_column_is_the_estimator_on_the_arm_s_own_verdicts() -> None:
    found = tables()
    by_arm = {
        (row["arm"], row["temperature"]): row
        for row in with_length_control(rows(), ARMS, found, SETTINGS)
    }
    for name in (DPO.name, BEST.name):
        here = [t[(t["domain"] == "in") & (t["temperature"] == 1.0)] for t in found.values()]
        own = dict(zip(found, here, strict=True))[name].sort_values(["prompt_id", "seed"])
        sft = here[0].sort_values(["prompt_id", "seed"])
        won = (own["gold_reward"].to_numpy() > sft["gold_reward"].to_numpy()).astype(float)
        expected = length_controlled_win_rate(
            won,
            own["completion_tokens"],
            sft["completion_tokens"],
            own["prompt_id"],
            resamples=200,
        )
        row = by_arm[name, 1.0]
        assert abs(row["lc_win_rate_vs_sft"] - expected.estimate) < 1e-6
        # Sums are taken in the samples' own order, so that the last bits differ.
        assert abs(row["lc_win_rate_vs_sft_low"] - expected.low) < 1e-3
        assert row["lc_win_rate_vs_sft_low"] < expected.estimate < row["lc_win_rate_vs_sft_high"]
    against_itself = by_arm["sft", 0.5]
    assert {against_itself[f"lc_win_rate_vs_sft{end}"] for end in ("", "_low", "_high")} == {0.5}


def test_one_prompt_has_a_rate_without_an_interval() -> None:
    found = with_length_control(rows(), ARMS, tables(prompts=1), SETTINGS)
    assert 0 <= found[2]["lc_win_rate_vs_sft"] <= 1
    assert math.isnan(found[2]["lc_win_rate_vs_sft_low"])


def test_a_language_model_s_verdicts_are_controlled_too() -> None:
    found = {
        name: table.assign(preference_vs_sft=1.0 * (table["seed"] == 0))
        for name, table in tables().items()
    }
    settings = SETTINGS.model_copy(update={"judge": "llm"})
    row = with_length_control(rows(), ARMS, found, settings)[3]
    assert abs(row["lc_win_rate_vs_sft"] - 0.5) < 0.1


def test_the_section_names_arms_that_win_on_one_count_alone() -> None:
    document = tidy(
        {"temperature": 1.0, "rows": with_length_control(rows(), ARMS, tables(), SETTINGS)}
    )
    for row in document["rows"]:
        if row["arm"] == DPO.name:
            row |= {"win_rate_vs_sft_low": 0.51, "lc_win_rate_vs_sft_low": 0.45}
    section = length_section(document)
    assert [row["arm"] for row in section["rows"]] == [DPO.name, BEST.name]
    assert DPO.name in section["turned"]
    assert section["sft"]["value"] == "9.0"
    assert section["rows"][0]["cells"][1] == {"value": "50.0", "interval": "[51.0, 60.0]"}


def test_the_headline_tells_a_win_that_may_be_one_of_length() -> None:
    row = {"arm": DPO.name, "temperature": 1.0, "win_rate_vs_sft_low": 0.55}
    row |= {"lc_win_rate_vs_sft": 0.5, "lc_win_rate_vs_sft_high": 0.6}
    document = {"best": DPO.name, "temperature": 1.0}
    (told,) = length_sentences({**document, "rows": [row | {"lc_win_rate_vs_sft_low": 0.4}]})
    assert "it wins 50.0 % [40.0, 60.0]" in told
    assert length_sentences({**document, "rows": [row | {"lc_win_rate_vs_sft_low": 0.51}]}) == []
    never = row | {"lc_win_rate_vs_sft_low": 0.4, "win_rate_vs_sft_low": 0.45}
    assert length_sentences({**document, "rows": [never]}) == []


def test_text_quality_of_words() -> None:
    found = tables()
    added = with_text_quality(rows(), found, SETTINGS)
    here = found[DPO.name]
    here = here[(here["domain"] == "in") & (here["temperature"] == 0.5)]
    expected = text_quality(
        [text.split() for text in here["completion"]],
        here["finish_reason"] == "stop",
        here["prompt_id"],
        resamples=200,
    )
    row = added[2]
    assert row["repetition"] == expected.repetition.estimate == pytest.approx(1 / 6)
    assert row["distinct"] == expected.distinct.estimate == 5 / 16
    assert row["finished"] == expected.finished.estimate
    assert (row["finished_low"], row["finished_high"]) == expected.finished[2:]
    document = tidy({"temperature": 1.0, "rows": added})
    section = quality_section(document)
    assert [row["arm"] for row in section["rows"]] == ["sft", DPO.name, BEST.name]
    assert section["rows"][0]["cells"][0] == {"value": "16.67", "interval": ""}  # all the same
    assert section["titles"][1] == "distinct-2, %"


def test_completions_of_one_word_have_no_repetition() -> None:
    found = {name: table.assign(completion="yes") for name, table in tables().items()}
    row = with_text_quality(rows(), found, SETTINGS)[0]
    assert math.isnan(row["repetition"])
    assert math.isnan(row["distinct"])
    assert quality_section(tidy({"temperature": 0.5, "rows": [row]}))["rows"][0]["cells"][0] == {
        "value": "–",
        "interval": "",
    }
