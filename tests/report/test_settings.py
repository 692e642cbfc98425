"""Arms that differ by seed alone, told together, and their figure by temperature."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from betaflow.config import Arm, CompareSettings
from betaflow.evaluation.optimum import reward_at, trace
from betaflow.report.frontier import Draws
from betaflow.report.settings import COLUMNS, by_setting
from betaflow.report.temperature_plot import draw_temperature, drawn

SETTINGS = CompareSettings(judge="gold", bootstrap=200, confidence=0.95, seed=0, report_samples=1)
NAMES = [f"p{n:02d}" for n in range(20)]
SFT = Arm(method="sft")
DPO = [Arm(method="dpo", beta=b, learning_rate=0.001, seed=s) for b in (0.3, 1.0) for s in (0, 1)]
BEST = Arm(method="best_of_n", scorer="gold", n=4)


def samples(mean: float, kl: float, temperatures: tuple[float, ...] = (0.0, 1.0)) -> pd.DataFrame:
    """Rewards around `mean`, greater by 1 at T = 0; a prompt of the second domain far off."""
    spread = np.linspace(-0.5, 0.5, len(NAMES))
    rows = [
        {"prompt_id": name, "temperature": t, "seed": 0, "domain": "in", "kl": kl,
         "policy_logprob": kl - 9.0, "reference_logprob": -9.0,
         "gold_reward": mean + shift + (t == 0.0)}
        for t in temperatures
        for name, shift in zip(NAMES, spread, strict=True)
    ]  # fmt: skip
    other = {**rows[-1], "prompt_id": "far", "domain": "out", "gold_reward": 1e6}
    return pd.DataFrame([*rows, other])


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    own = {arm.name: samples(1.0 + n, 1.0 + n) for n, arm in enumerate(DPO)}
    return own | {"sft": samples(0.0, 0.0), BEST.name: samples(1.5, 1.0, (1.0,))}


def test_seeds_are_pooled_and_their_spread_told(tables: dict[str, pd.DataFrame]) -> None:
    rows = by_setting([SFT, *DPO, BEST], tables, None, "gold_reward", SETTINGS)
    assert [(row["method"], row["setting"], row["temperature"], row["seeds"]) for row in rows] == [
        ("SFT", "", 0.0, 1), ("SFT", "", 1.0, 1),
        ("DPO", "β = 0.3", 0.0, 2), ("DPO", "β = 0.3", 1.0, 2),
        ("DPO", "β = 1", 0.0, 2), ("DPO", "β = 1", 1.0, 2),
        ("Best-of-N (gold)", "n = 4", 1.0, 1),
    ]  # fmt: skip
    assert all(list(row) == COLUMNS for row in rows)
    at_zero, at_one = rows[2:4]
    assert (at_zero["reward"], at_one["reward"]) == pytest.approx((2.5, 1.5))
    assert at_zero["kl"] == at_one["kl"] == pytest.approx(1.5)
    assert at_one["reward_seed_sd"] == pytest.approx(math.sqrt(0.5))
    assert at_one["kl_seed_sd"] == pytest.approx(math.sqrt(0.5))
    assert at_one["win_rate_vs_sft"] == 1.0
    assert math.isnan(rows[-1]["reward_seed_sd"])
    assert math.isnan(at_one["fraction"])


def test_the_share_of_the_optimum_is_of_the_pooled_means(tables: dict[str, pd.DataFrame]) -> None:
    rewards = np.random.default_rng(0).normal(size=(len(NAMES), 2000))
    draws = Draws(np.array(NAMES), rewards, trace(rewards, minimum_ess=30), 30)
    rows = by_setting([SFT, *DPO[:2]], tables, draws, "gold_reward", SETTINGS)
    best, start = float(reward_at(draws.found, 1.5)), draws.found.reference.mean()
    assert rows[-1]["fraction"] == pytest.approx((1.5 - start) / (best - start))
    assert math.isnan(rows[0]["fraction"])


def test_the_figure_has_what_was_drawn_at_several_temperatures(
    tables: dict[str, pd.DataFrame],
) -> None:
    rows = by_setting([SFT, *DPO, BEST], tables, None, "gold_reward", SETTINGS)
    assert list(drawn(rows)) == ["DPO"]
    assert list(drawn(rows)["DPO"]) == ["β = 0.3", "β = 1"]
    above, below = draw_temperature(rows, "gold_reward").axes
    lines = {line.get_color(): line.get_ydata() for line in above.lines}
    assert list(lines["#515151"]) == pytest.approx([1.0, 0.0])
    assert above.get_title() == "DPO"
    assert below.get_ylabel() == "win rate against SFT"
    assert not drawn([row for row in rows if row["temperature"] == 1.0])
