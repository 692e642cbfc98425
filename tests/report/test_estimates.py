"""The comparison's numbers on cases small enough to work out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from betaflow.config import Arm, CompareSettings
from betaflow.errors import UserError
from betaflow.report.estimates import estimates

SETTINGS = CompareSettings(judge="gold", bootstrap=100, confidence=0.95, seed=0, report_samples=1)
SFT = Arm(method="sft")
DPO = Arm(method="dpo", beta=0.1, learning_rate=0.001, seed=0)
PPO = Arm(method="ppo", beta=0.1, learning_rate=0.001, seed=0)
SUMMARY = {"train_tokens": 10, "sampled_tokens": 4}


def table(rewards: list[float], kl: list[float], out_reward: float = 9.0) -> pd.DataFrame:
    """Two prompts, one draw each at T = 0 and T = 1, and one prompt of the other domain."""
    rows = []
    for index, reward in enumerate(rewards):
        temperature = float(index % 2)
        rows.append(
            {
                "prompt_id": f"p{index // 2}",
                "domain": "in",
                "temperature": temperature,
                "gold_reward": reward,
                "kl": kl[index // 2] if temperature else math.nan,
                "completion_tokens": 10 + index,
                "finish_reason": "stop" if index else "length",
            }
        )
    rows.append(
        rows[1] | {"prompt_id": "o", "domain": "out", "gold_reward": out_reward, "kl": 99.0}
    )
    common = {"seed": 0, "prompt": "p", "completion": "c", "reward_model": 1.0}
    return pd.DataFrame([row | common for row in rows])


def make(samples: dict[str, pd.DataFrame], arms: list[Arm]) -> list[dict[str, Any]]:
    benchmarks: dict[str, Any] = {arm.name: {"results": {}} for arm in arms}
    return estimates(arms, samples, {arm.name: SUMMARY for arm in arms}, benchmarks, SETTINGS)


def test_by_hand() -> None:
    samples = {
        # T = 0 rewards: p0, p1; T = 1 rewards: p0, p1, interleaved
        "sft": table([0.0, 1.0, 0.0, 1.0], [0.0, 0.0]),
        DPO.name: table([1.0, 1.0, 0.0, 3.0], [2.0, 4.0], out_reward=5.0),
        PPO.name: table([0.5, 0.0, 0.5, 3.0], [1.0, 1.0]),
    }
    rows = make(samples, [SFT, DPO, PPO])
    assert [(r["arm"], r["temperature"]) for r in rows] == [
        (name, t) for name in ("sft", DPO.name, PPO.name) for t in (0.0, 1.0)
    ]
    cold, warm = rows[2:4]
    assert (cold["gold_reward"], warm["gold_reward"]) == (0.5, 2.0)
    assert cold["kl"] == warm["kl"] == 3.0  # the arm's own, at T = 1, in-domain
    assert (cold["win_rate_vs_sft"], warm["win_rate_vs_sft"]) == (0.75, 0.75)
    assert (cold["win_rate_vs_ppo"], warm["win_rate_vs_ppo"]) == (0.5, 0.75)
    assert math.isnan(cold["gold_reward_ood"])
    assert warm["gold_reward_ood"] == 5.0
    assert (cold["completion_tokens"], warm["completion_tokens"]) == (11.0, 12.0)
    assert (warm["prompts"], warm["samples"], warm["train_tokens"]) == (2, 2, 10)
    assert rows[0]["win_rate_vs_sft"] == rows[0]["win_rate_vs_sft_low"] == 0.5
    assert rows[5]["win_rate_vs_ppo"] == rows[5]["win_rate_vs_ppo_high"] == 0.5


def test_an_arm_equal_to_sft_wins_one_half() -> None:
    same = table([0.0, 1.0, 0.0, 1.0], [0.0, 0.0])
    rows = make({"sft": same, DPO.name: same.copy()}, [SFT, DPO])
    found = [rows[3][f"win_rate_vs_sft{end}"] for end in ("", "_low", "_high")]
    assert found == [0.5, 0.5, 0.5]
    assert math.isnan(rows[3]["win_rate_vs_ppo"])  # no PPO arm to compare with


def test_benchmarks_have_errors() -> None:
    same = table([0.0, 1.0, 0.0, 1.0], [0.0, 0.0])
    benchmarks = {
        "sft": {"results": {"cloze": {"acc": 0.5, "acc_stderr": 0.1, "alias": "x"}}},
        DPO.name: {"results": {"cloze": {"acc": 0.75, "acc_stderr": "N/A"}}},
    }
    arms = [SFT, DPO]
    summaries = {arm.name: SUMMARY for arm in arms}
    rows = estimates(arms, {"sft": same, DPO.name: same}, summaries, benchmarks, SETTINGS)
    assert (rows[0]["cloze/acc"], rows[0]["cloze/acc_stderr"]) == (0.5, 0.1)
    assert rows[2]["cloze/acc"] == 0.75
    assert math.isnan(rows[2]["cloze/acc_stderr"])
    assert "cloze/alias" not in rows[0]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda t: t.drop(columns="kl"), "no column 'kl'"),
        (lambda t: t.assign(gold_reward=math.nan), "set compare.judge: reward_model"),
        (lambda t: t.assign(gold_reward=t["gold_reward"].where(t.index > 0)), "1 of 4 samples"),
        (lambda t: t[t["domain"] == "out"], "no in-domain samples"),
        (lambda t: t.iloc[1:], "same prompts, temperatures and seeds"),
    ],
)
def test_samples_that_cannot_be_compared(
    spoil: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    same = table([0.0, 1.0, 0.0, 1.0], [0.0, 0.0])
    with pytest.raises(UserError, match=message):
        make({"sft": same, DPO.name: spoil(same)}, [SFT, DPO])
