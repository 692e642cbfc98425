"""Over-optimisation: gains against the start, the fits, the peak, who judges, files and figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from betaflow.config import Arm, CompareSettings, load_params
from betaflow.errors import UserError
from betaflow.evaluation.best_of_n import best_of_n_kl, best_of_n_rewards
from betaflow.io import write_json
from betaflow.report.curves import Looks
from betaflow.report.overoptimisation import Document, overoptimisation
from betaflow.report.overoptimisation_files import write_overoptimisation
from betaflow.report.overoptimisation_plot import (
    BEST_OF_N,
    draw_drift,
    draw_rewards,
    draw_second,
    figures,
)
from betaflow.report.table import tidy

SETTINGS = CompareSettings(judge="gold", bootstrap=100, confidence=0.95, seed=0, report_samples=1)
PROMPTS, DRAWS = 16, 2
NAMES = [f"p{n:02d}" for n in range(PROMPTS)]
LEVELS = np.linspace(-1, 1, PROMPTS)  # what a prompt is worth whoever goes on from it
ALPHA, BETA = 1.2, 0.6
SECOND = {"accuracy": 0.75, "features": 3}
NO_DRAWS = pd.DataFrame(columns=["prompt_id", "draw", "gold_reward", "reward_model"])
D = np.linspace(0.3, 5, 12)


def law(d: float) -> float:
    return float(d * (ALPHA - BETA * np.log(d))) if d else 0.0


def look(d: float, gain: float, step: int | None = None, noise: int | None = None) -> pd.DataFrame:
    """Two draws a prompt with this KL and mean gain in the gold reward."""
    random = np.random.default_rng(noise)
    own = random.normal(0, 0.1, (PROMPTS, DRAWS)) if noise is not None else np.zeros((PROMPTS, 2))
    gold = (LEVELS[:, None] + gain + own + [-0.5, 0.5]).ravel()
    table = pd.DataFrame(
        {
            "prompt_id": np.repeat(NAMES, DRAWS),
            "draw": np.tile(range(DRAWS), PROMPTS),
            "kl": d * d,
            "log_ratio": 2.0 * d,
            "entropy": 1.5 - 0.1 * d,
            "completion_tokens": 20 + int(4 * d),
            "finished": True,
            "gold_reward": gold,
            "second_gold": 0.5 * gold - 0.2,
            "reward_model": 3.0 * gold + 2 * d,
        }
    )
    return table if step is None else table.assign(step=step)


def curve(
    ds: Sequence[float] = tuple(D), gain: Callable[[float], float] = law, noise: int | None = None
) -> pd.DataFrame:
    return pd.concat(
        [
            look(d, gain(d), 10 * n, None if noise is None else 100 * noise + n)
            for n, d in enumerate(ds, 1)
        ],
        ignore_index=True,
    )


def drawn(gold: Any, proxy: Any) -> pd.DataFrame:
    """`out/optimum/draws.parquet` of (prompts, draws) rewards."""
    count = gold.shape[1]
    return pd.DataFrame(
        {
            "prompt_id": np.repeat(NAMES, count),
            "draw": np.tile(range(count), PROMPTS),
            "gold_reward": gold.ravel(),
            "reward_model": proxy.ravel(),
        }
    )


def dpo(beta: float = 0.1, seed: int = 0, rate: float = 0.001) -> Arm:
    return Arm(method="dpo", beta=beta, learning_rate=rate, seed=seed)


def ppo(method: Any, seed: int = 0) -> Arm:
    return Arm(method=method, beta=0.01, target_kl=0, learning_rate=0.001, seed=seed)


def told(curves: dict[Arm, pd.DataFrame], draws: pd.DataFrame = NO_DRAWS) -> Document:
    looks = Looks(look(0, 0), {arm.name: table for arm, table in curves.items()}, SECOND)
    return overoptimisation([Arm(method="sft"), *curves], looks, draws, SETTINGS)


def test_the_law_that_the_gains_follow_is_found() -> None:
    found = told({dpo(seed=0): curve(), dpo(seed=1): curve(D + 0.1)})
    (group,) = found["groups"]
    assert (group["name"], group["arms"]) == ("DPO, β = 0.1", [dpo(seed=s).name for s in (0, 1)])
    rl, bon = group["fits"]
    assert (rl["form"], bon["form"]) == ("rl", "bon")
    assert (rl["alpha"], rl["beta"]) == pytest.approx((ALPHA, BETA))
    assert rl["peak_d"] == pytest.approx(np.exp(ALPHA / BETA - 1))
    assert (rl["points"], rl["reason"]) == (24, "")
    assert rl["unseen_curve_r2"] == rl["extrapolation_r2"] == pytest.approx(1)
    assert rl["rmse"] < 1e-9 < bon["rmse"]
    assert bon["extrapolation_r2"] < 0.9
    (method,) = found["methods"]
    assert (method["method"], method["fits"]) == ("DPO", group["fits"])


def test_gains_are_over_the_start_on_the_same_prompts() -> None:
    found = told({dpo(): curve([0.3, 2.0])})
    start, first, last = found["groups"][0]["curve"]
    assert start["step"] == start["kl"] == start["gold_reward_gain"] == start["implicit_gain"] == 0
    assert (last["step"], last["kl"], last["d"]) == (20, 4.0, 2.0)
    assert last["gold_reward_gain"] == pytest.approx(law(2.0))
    # Levels differ between prompts by more than that, but gains here do not at all.
    assert last["gold_reward_gain_low"] == pytest.approx(last["gold_reward_gain_high"])
    assert last["second_gold_gain"] == pytest.approx(0.5 * law(2.0))
    assert last["reward_model_gain"] == pytest.approx(3 * law(2.0) + 4)
    assert first["implicit_gain"] == pytest.approx(0.1 * 2 * 0.3)  # beta times the log-ratio
    assert (last["entropy"], last["completion_tokens"]) == (pytest.approx(1.3), 28.0)
    begun = found["start"]
    assert (begun["prompts"], begun["draws"], begun["entropy"]) == (PROMPTS, 32, 1.5)
    assert begun["reward_model_scale"] == pytest.approx(1 / 3)
    assert begun["correlation"]["reward_model"] == pytest.approx(1)
    assert np.isnan(begun["correlation"]["implicit"])  # it is 0 of every draw
    assert found["groups"][0]["draws"] == 32
    assert [row["step"] for row in found["looks"]] == [0, 10, 20]
    assert {row["arm"] for row in found["looks"]} == {dpo().name}


def test_the_peak_and_what_is_lost_after_it() -> None:
    def roof(d: float) -> float:
        return 2 - abs(d - D[5])

    tables = {dpo(seed=s): curve(gain=roof, noise=s) for s in (0, 1, 2)}
    peak = told(tables)["groups"][0]["gold_peak"]
    assert (peak["step"], peak["d"], peak["kl"]) == pytest.approx((60, D[5], D[5] ** 2))
    assert peak["reward_low"] < 2 < peak["reward_high"]
    assert peak["decline"] == pytest.approx(D[-1] - D[5], abs=0.1)
    assert peak["decline_low"] > 0
    falling = told({dpo(): curve(gain=lambda d: -d)})["groups"][0]["gold_peak"]
    assert (falling["step"], falling["d"], falling["reward"]) == (0, 0, 0)  # the start is best


def test_ppo_gt_is_judged_by_the_second_score() -> None:
    found = told({ppo("ppo"): curve(), ppo("ppo_gt"): curve()})
    by_reward_model, by_gold = found["groups"]
    assert by_reward_model["judge"] == "gold_reward"
    assert by_reward_model["proxies"] == ("reward_model",)
    assert (by_gold["judge"], by_gold["proxies"]) == ("second_gold", ("gold_reward",))
    assert by_gold["fits"][0]["alpha"] == pytest.approx(by_reward_model["fits"][0]["alpha"] / 2)
    assert by_gold["correlation"]["gold_reward"] == pytest.approx(1)
    assert np.isnan(by_gold["curve"][-1]["implicit_gain"])  # PPO's policy is no reward


def test_groups_are_settings_and_a_method_is_all_of_its_own() -> None:
    arms = [dpo(0.1), dpo(0.3, rate=0.001), dpo(0.3, rate=0.002), ppo("ppo")]
    found = told({arm: curve(noise=n) for n, arm in enumerate(arms)})
    assert [group["name"] for group in found["groups"]] == [
        "DPO, β = 0.1", "DPO, β = 0.3, rate 0.001", "DPO, β = 0.3, rate 0.002", "PPO, β = 0.01",
    ]  # fmt: skip
    assert {row["method"]: len(row["arms"]) for row in found["methods"]} == {"DPO": 3, "PPO": 1}
    assert found["methods"][0]["fits"][0]["points"] == 36
    # A single run has intervals over its prompts, and no other run to predict.
    alone = found["methods"][1]["fits"][0]
    assert alone["alpha_low"] < alone["alpha"] < alone["alpha_high"]
    assert "without the points held out" in alone["unseen_curve_reason"]


def test_a_seed_that_stopped_early_shares_the_steps_it_has() -> None:
    (group,) = told({dpo(seed=0): curve(D), dpo(seed=1): curve(D[:5])})["groups"]
    assert [row["step"] for row in group["curve"]] == [0, 10, 20, 30, 40, 50]
    assert group["fits"][0]["points"] == 17  # all that were seen


def test_other_prompts_than_the_start_s_are_refused() -> None:
    table = curve()
    table.loc[table["prompt_id"] == "p03", "prompt_id"] = "other"
    with pytest.raises(UserError, match="were not looked at on the same prompts"):
        told({dpo(): table})


def test_best_of_n_by_the_reward_model() -> None:
    random = np.random.default_rng(0)
    gold = random.normal(size=(PROMPTS, 40))
    proxy = gold + random.normal(size=gold.shape)
    draws = drawn(gold, proxy)
    best = told({dpo(): curve()}, draws)["best_of_n"]
    assert [row["n"] for row in best["curve"]] == [1, 2, 4, 8, 16, 32]
    row = best["curve"][3]
    assert row["kl"] == best_of_n_kl(8)
    expected = best_of_n_rewards(gold, 8, proxy).mean() - gold.mean()
    assert row["gold_reward_gain"] == pytest.approx(expected)
    assert row["reward_model_gain"] > 1.3 * row["gold_reward_gain"]
    assert [found["points"] for found in best["fits"]] == [5, 5]
    assert best["correlation"] == pytest.approx(np.corrcoef(gold.ravel(), proxy.ravel())[0, 1])
    assert told({dpo(): curve()}, draws.assign(gold_reward=np.nan))["best_of_n"] is None


def without_gold() -> Document:
    def blank(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(gold_reward=np.nan, second_gold=np.nan)

    arms = [dpo(), ppo("ppo")]
    looks = Looks(blank(look(0, 0)), {arm.name: blank(curve()) for arm in arms}, None)
    found: Document = tidy(overoptimisation(arms, looks, NO_DRAWS, SETTINGS))
    return found


def test_without_gold_only_proxies_and_drift_are_told() -> None:
    found = without_gold()
    for group in found["groups"]:
        assert group["fits"] == []
        assert "embedded world alone" in group["reason"]
        assert group["gold_peak"]["reason"] == group["reason"]
        assert group["curve"][-1]["gold_reward_gain"] is None
        assert group["curve"][-1]["reward_model_gain"] > 0
    assert list(figures(found)) == ["overoptimisation.png", "drift.png"]
    words = [text.get_text() for text in draw_rewards(found).legends[0].get_texts()]
    assert words == ["reward model's score", "implicit reward"]
    assert "no peak is told" in figures(found)["overoptimisation.png"][1]


def test_the_figures() -> None:
    rising = curve(gain=lambda d: d)
    tables = {dpo(): curve(noise=0), dpo(0.3): rising, ppo("ppo"): rising, ppo("ppo_gt"): curve()}
    gold = np.tile([0.0, 1.0, 2.0, 3.0], (PROMPTS, 1))
    found = tidy(told(tables, drawn(gold, gold + 1)))
    rewards = draw_rewards(found)
    assert [axes.get_title() for axes in rewards.axes] == ["DPO", "PPO", "PPO-GT", BEST_OF_N]
    first = rewards.axes[0]
    marks = {line.get_marker(): line for line in first.lines}
    assert set(marks) == {"None", "o"}
    # The reward model's gain is drawn in the gold reward's unit.
    ends = [line.get_ydata()[-1] for line in first.lines if line.get_linestyle() == "--"]
    last = found["groups"][0]["curve"][-1]
    assert ends[0] == pytest.approx(last["reward_model_gain"] / 3, abs=1e-4)
    peaks = [line for line in first.lines if line.get_marker() == "o"]
    hollow = [to_rgba(line.get_markerfacecolor()) == to_rgba("white") for line in peaks]
    assert hollow == [False, True]  # the second only rises
    drift = draw_drift(found).axes
    assert [axes.get_ylabel() for axes in drift] == ["tokens a completion", "entropy, nats a token"]
    assert len(drift[0].lines) == 1 + 2 * len(tables)
    lines = draw_second(found).axes[0].lines[1:]
    assert [line.get_alpha() for line in lines] == [0.3] * 6 + [1.0] * 2
    texts = {name: text for name, (_, text) in figures(found).items()}
    assert "DPO, β = 0.1: gold peaks at step" in texts["overoptimisation.png"]
    assert "PPO-GT, β = 0.01: second gold peaks at step" in texts["overoptimisation.png"]
    assert f"{BEST_OF_N}: gold gains 1.50 at n = 4" in texts["overoptimisation.png"]
    assert "40.0 tokens" in texts["drift.png"]
    assert "gold 5.00, second 2.50" in texts["second_gold.png"]


@pytest.mark.parametrize("looked", [True, False])
def test_the_files(
    looked: bool, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params(repository / "params.yaml").model_copy(update={"compare": SETTINGS})
    arms = [dpo(seed=0), dpo(seed=1), ppo("ppo_gt")]
    write_json(tmp_path / "arms.json", [{"name": a.name, **a.model_dump()} for a in arms])
    (tmp_path / "optimum").mkdir()
    NO_DRAWS.to_parquet(tmp_path / "optimum/draws.parquet")
    curves = {arm.name: curve(noise=n) for n, arm in enumerate(arms)}
    looks = Looks(look(0, 0), curves, SECOND) if looked else None
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_overoptimisation(params, looks, tmp_path / name, out=tmp_path)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    document = json.loads((tmp_path / "one/overoptimisation.json").read_text())
    pictures = ["drift.png", "overoptimisation.png", "second_gold.png"]
    assert [name for name in files if name.endswith(".png")] == (pictures if looked else [])
    assert sorted(document["figures"]) == (pictures if looked else [])
    with open(tmp_path / "one/fits.csv", newline="", encoding="utf-8") as file:
        fits = [(row["over"], row["judge"], row["form"]) for row in csv.DictReader(file)]
    with open(tmp_path / "one/looks.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not looked:
        assert fits == rows == document["groups"] == []
        return
    names = ["DPO, β = 0.1", "PPO-GT, β = 0.01", "DPO, all settings", "PPO-GT, all settings"]
    judges = ["gold_reward", "second_gold"] * 2
    assert fits == [(*pair, f) for pair in zip(names, judges, strict=True) for f in ("rl", "bon")]
    assert len(rows) == 3 * 13
    assert float(rows[1]["gold_reward_gain"]) == document["looks"][1]["gold_reward_gain"]
