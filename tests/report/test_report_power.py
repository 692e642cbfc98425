"""How many prompts a run needs: the figures, and what the reader is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from betaflow.config import DetectSettings
from betaflow.evaluation import detection_power, pilot, prompts_needed
from betaflow.report.power import DEFAULT, enough, needed, power, power_section, sentence
from betaflow.report.table import tidy


def about(
    wins: list[float], draws: int = 1, detect: DetectSettings | None = None
) -> dict[str, Any]:
    prompts = np.repeat(np.arange(len(wins) // draws), draws)
    verdicts = pd.DataFrame({"prompt_id": prompts, "preference": wins})
    found: dict[str, Any] = tidy(power("dpo", verdicts, 0.95, detect))
    return found


def test_what_the_verdicts_say_goes_into_the_number() -> None:
    wins = [1.0, 1.0, 0.5, 1.0, 0.0, 0.5, 1.0, 0.0, np.nan, 1.0] * 30
    found = about(wins, draws=2)
    told = pilot(wins, np.repeat(np.arange(150), 2))
    kind = {
        "completions": told.completions,
        "ties": told.ties,
        "correlation": told.correlation,
    }
    row = needed(found)
    assert (row["win_rate"], found["detect"], found["power"]) == (0.6, 0.6, 0.8)
    assert (DEFAULT.win_rate, DEFAULT.power) == (0.6, 0.8)
    assert row["needed"] == prompts_needed(0.6, power=0.8, **kind)
    assert abs(row["chance"] - detection_power(150, 0.6, **kind)) < 1e-5
    assert found["prompts"] == 150
    assert [r["needed"] for r in found["rows"]] == sorted(
        (r["needed"] for r in found["rows"]), reverse=True
    )


def test_what_a_promotion_is_to_detect_is_what_is_told() -> None:
    found = about([1.0, 0.0] * 300, detect=DetectSettings(win_rate=0.58, power=0.9))
    assert needed(found)["needed"] == prompts_needed(0.58, power=0.9)
    assert "a true win rate of 58% against SFT with a chance of 90%" in sentence(found)
    assert [row["win_rate"] for row in found["rows"]] == [0.55, 0.58, 0.6, 0.65, 0.7, 0.8]


def test_a_run_with_enough_prompts_is_not_warned_of() -> None:
    found = about([1.0, 0.0] * 300)
    assert enough(found) is True
    assert sentence(found) == (
        "To see a true win rate of 60% against SFT with a chance of 80% takes 194 prompts; this "
        "run has 600."
    )


def test_a_run_with_too_few_is() -> None:
    found = about([1.0, 0.0] * 20)
    assert enough(found) is False
    assert sentence(found).startswith("Warning: To see a true win rate of 60%")
    assert "takes 194 prompts; this run has 40, and a chance of 2" in sentence(found)
    assert "Raise sample.prompts" in sentence(found)


def test_one_prompt_has_no_chance_and_all_ties_no_answer() -> None:
    one = about([1.0])
    assert needed(one)["chance"] is None
    assert "this run has 1. Raise" in sentence(one)
    ties = about([0.5] * 40)
    assert enough(ties) is None
    assert needed(ties)["needed"] is None
    assert "With so many ties (100% of the verdicts)" in sentence(ties)
    section = power_section({"power": ties, "temperature": 1.0})
    assert [row["needed"] for row in section["rows"]] == ["–"] * 5


def test_the_section() -> None:
    section = power_section({"power": about([1.0, 0.0] * 20), "temperature": 1.0})
    assert section["rows"][1] == {
        "rate": "60",
        "needed": "194",
        "chance": f"{detection_power(40, 0.6):.0%}",
    }
    many = power_section({"power": about([1.0, 0.0] * 200), "temperature": 1.0})
    assert many["rows"][-1]["chance"] == "> 99%"
    assert (section["prompts"], section["completions"], section["ties"]) == ("40", "1.0", "0")
    assert section["level"] == "95%"
