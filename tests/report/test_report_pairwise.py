"""All arms against all: the matrix, the ratings, their sections and the heatmap."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from betaflow.config import Arm, CompareSettings
from betaflow.report.pairwise import (
    by_rating,
    comparisons,
    pairwise,
    pairwise_section,
    ratings_section,
    with_ratings,
)
from betaflow.report.pairwise_plot import LEGIBLE, pairwise_alt_text, pairwise_figure
from betaflow.report.table import tidy

SETTINGS = CompareSettings(judge="gold", bootstrap=200, confidence=0.95, seed=0, report_samples=1)
SFT = Arm(method="sft")
DPO = Arm(method="dpo", beta=0.1, learning_rate=0.001, seed=0)
PPO = Arm(method="ppo", beta=0.1, learning_rate=0.001, seed=0)
BEST = Arm(method="best_of_n", scorer="gold", n=4)
ARMS = [SFT, DPO, PPO]


def samples(rewards: list[float], temperature: float = 1.0) -> pd.DataFrame:
    """Two draws a prompt, and one of the other domain."""
    rows: list[dict[str, Any]] = [
        {"prompt_id": f"p{index // 2}", "domain": "in", "seed": index % 2, "gold_reward": reward}
        for index, reward in enumerate(rewards)
    ]
    rows.append({"prompt_id": "o", "domain": "out", "seed": 0, "gold_reward": 99.0})
    return pd.DataFrame(rows).assign(temperature=temperature)


# Against SFT: DPO 3 of 4, PPO 1 of 4 and a tie; DPO over PPO 4 of 4.
TABLES = {
    "sft": samples([0.0, 0.0, 0.0, 0.0]),
    DPO.name: samples([1.0, 1.0, 1.0, -1.0]),
    PPO.name: samples([0.5, 0.0, -1.0, -2.0]),
}


def test_the_matrix_by_hand() -> None:
    found = pairwise(ARMS, TABLES, SETTINGS, 1.0)
    rates = {(row["arm"], row["other"]): row for row in found["rows"]}
    assert list(rates) == [
        (a.name, b.name) for a in ARMS for b in ARMS if a.name != b.name
    ]  # in the sweep's order
    assert rates[DPO.name, "sft"]["estimate"] == 0.75
    assert rates[PPO.name, "sft"]["estimate"] == 0.375
    assert rates[PPO.name, DPO.name]["estimate"] == 0.0
    for (arm, other), row in rates.items():
        mirror = rates[other, arm]
        assert row["estimate"] == 1 - mirror["estimate"]
        assert row["low"] == pytest.approx(1 - mirror["high"])
        assert row["low"] <= row["estimate"] <= row["high"]
        assert row["prompts"] == 2
    ratings = {row["arm"]: row for row in found["ratings"]}
    assert ratings["sft"]["rating"] == ratings["sft"]["rating_low"] == 0.0
    assert ratings[DPO.name]["rating"] > 0 > ratings[PPO.name]["rating"]
    assert (ratings["sft"]["prompts"], ratings["sft"]["verdicts"]) == (2, 8)
    assert by_rating(found) == [DPO.name, "sft", PPO.name]


def test_ratings_stand_at_their_temperature_alone() -> None:
    found = pairwise(ARMS, TABLES, SETTINGS, 1.0)
    rows = [{"arm": DPO.name, "temperature": t} for t in (0.0, 1.0)]
    cold, warm = with_ratings(rows, found)
    assert math.isnan(cold["rating"])
    assert warm["rating_low"] < warm["rating"] < warm["rating_high"]


def test_arms_that_were_not_sampled_there_are_left_out() -> None:
    tables = {**TABLES, BEST.name: samples([9.0] * 4, temperature=0.5)}
    found = pairwise([*ARMS, BEST], tables, SETTINGS, 1.0)
    assert BEST.name not in {row["arm"] for row in found["rows"] + found["ratings"]}


def test_a_language_model_s_verdicts_are_those_that_it_was_asked_for() -> None:
    asked = {
        name: table.assign(preference_vs_sft=won, preference_vs_ppo=0.5)
        for (name, table), won in zip(
            TABLES.items(), (0.5, [1.0, 1.0, np.nan, 0.0, 0.0], 0.25), strict=True
        )
    }
    other = Arm(method="dpo", beta=0.3, learning_rate=0.001, seed=0)
    asked[other.name] = asked[DPO.name].drop(columns="preference_vs_ppo")
    asked[other.name]["preference_vs_ppo"] = [1.0, 1.0, 1.0, 1.0, 0.0]
    arms = [SFT, DPO, PPO, other]
    settings = SETTINGS.model_copy(update={"judge": "llm"})
    verdicts = comparisons(arms, asked, settings, 1.0)
    # Three arms against SFT and two against PPO, on four samples; none against itself.
    assert len(verdicts.preferences) == 5 * 4
    assert not (verdicts.left == verdicts.right).any()
    assert "o" not in verdicts.clusters
    found = pairwise(arms, asked, settings, 1.0)
    rates = {(row["arm"], row["other"]): row for row in found["rows"]}
    assert rates[DPO.name, "sft"]["estimate"] == pytest.approx(2 / 3)
    assert rates["sft", PPO.name]["estimate"] == 0.75
    assert math.isnan(rates[DPO.name, other.name]["estimate"])
    assert rates[DPO.name, other.name]["prompts"] == 0
    document = {"pairwise": tidy(found)}
    section = pairwise_section(document)
    assert section["gaps"]
    place = section["arms"].index(other.name)
    cells = {row["arm"]: row["cells"][place]["value"] for row in section["rows"]}
    assert cells[DPO.name] == "–"
    assert cells[other.name] == ""
    pairwise_figure(document["pairwise"])


def test_one_prompt_has_rates_without_intervals() -> None:
    one = {name: table[table["prompt_id"] != "p1"] for name, table in TABLES.items()}
    found = tidy(pairwise(ARMS, one, SETTINGS, 1.0))
    assert {row["low"] for row in found["rows"]} == {None}
    assert found["rows"][0]["estimate"] == 0.0
    section = pairwise_section({"pairwise": found})
    assert section["prompts"] == "1"
    assert all(cell["interval"] == "" for row in section["rows"] for cell in row["cells"])
    figure = pairwise_figure(found)
    assert [t.get_text() for t in figure.axes[0].texts if "(" not in t.get_text()] == []


def test_the_figure_has_every_number_and_marks_those_that_may_be_one_half() -> None:
    found = tidy(pairwise(ARMS, TABLES, SETTINGS, 1.0))
    axes = pairwise_figure(found).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [DPO.name, "sft", PPO.name]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert len(texts) == 6
    assert texts[2, 0].strip("()") == "100"
    assert texts[2, 1] == "(62)"  # two prompts tell little
    assert "3 arms" in pairwise_alt_text(found)
    assert "Of 3 pairs" in pairwise_alt_text(found)


def test_a_large_sweep_is_drawn_without_numbers() -> None:
    count = LEGIBLE + 1
    names = [f"a{index:02d}" for index in range(count)]
    rows = [
        {"arm": a, "other": b, "estimate": 0.5, "low": 0.4, "high": 0.6, "prompts": 9}
        for a in names
        for b in names
        if a != b
    ]
    ratings = [{"arm": name, "rating": -i} for i, name in enumerate(names)]
    figure = pairwise_figure({"temperature": 1.0, "rows": rows, "ratings": ratings})
    assert not figure.axes[0].texts
    assert len(figure.axes[0].get_yticklabels()) == count


def test_the_ratings_section_falls_from_the_best() -> None:
    found = tidy(pairwise(ARMS, TABLES, SETTINGS, 1.0))
    rows = ratings_section({"pairwise": found})["rows"]
    assert [row["arm"] for row in rows] == [DPO.name, "sft", PPO.name]
    assert (rows[1]["value"], rows[1]["interval"]) == ("0", "")
    assert rows[0]["interval"].startswith("[")
    assert rows[0]["verdicts"] == "8"
