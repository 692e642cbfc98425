"""The comparison with the optimum: its numbers, its files, its figure and what it warns of."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from parsed import Page

import tasks.compare
import tasks.frontier
from betaflow.config import Arm, CompareSettings, Params
from betaflow.errors import UserError
from betaflow.evaluation.best_of_n import best_of_n_kl, best_of_n_rewards
from betaflow.evaluation.optimum import kl_at, reward_at, tilt
from betaflow.report.build import build, render, with_fractions
from betaflow.report.by_prompt import by_prompt, draw_by_prompt
from betaflow.report.costs import whole
from betaflow.report.frontier import Draws, frontier, read_draws
from betaflow.report.frontier_files import write_frontier
from betaflow.report.frontier_plot import WIDEST, alt_text, draw_frontier
from betaflow.report.table import tidy

Workspace = Callable[..., Params]
SETTINGS = CompareSettings(judge="gold", bootstrap=100, confidence=0.95, seed=0, report_samples=1)
PROMPTS, DRAWS = 24, 1000
NAMES = np.array([f"p{n:02d}" for n in range(PROMPTS)])
LEVELS = np.random.default_rng(0).normal(size=PROMPTS)
REWARDS = LEVELS[:, None] + np.random.default_rng(1).uniform(0, 4, size=(PROMPTS, DRAWS))
SFT = Arm(method="sft")
DPO = [Arm(method="dpo", beta=b, learning_rate=0.001, seed=0) for b in (0.3, 1.0)]
PPO = Arm(method="ppo", beta=0.1, target_kl=0, learning_rate=0.001, seed=0)
BEST = Arm(method="best_of_n", scorer="gold", n=4)
PPO_GT = PPO.model_copy(update={"method": "ppo_gt"})
LOST = Arm(method="unlikelihood", alpha=0.5, learning_rate=0.001, seed=0)
ARMS = [SFT, *DPO, PPO, LOST]


def drawn() -> pd.DataFrame:
    """`out/optimum/draws.parquet`."""
    return pd.DataFrame(
        {
            "prompt_id": np.repeat(NAMES, DRAWS),
            "draw": np.tile(np.arange(DRAWS), PROMPTS),
            "gold_reward": REWARDS.ravel(),
        }
    )


def scored(rewards: Any, kl: Any) -> pd.DataFrame:
    """Samples of an arm, one a prompt, with these rewards."""
    return pd.DataFrame(
        {
            "prompt_id": NAMES,
            "domain": "in",
            "prompt": "p",
            "temperature": 1.0,
            "seed": 0,
            "completion": "c",
            "finish_reason": "stop",
            "completion_tokens": 4,
            "kl": np.broadcast_to(kl, PROMPTS),
            "policy_logprob": -9.0,
            "reference_logprob": -9.0 - np.broadcast_to(kl, PROMPTS),  # without luck
            "gold_reward": rewards,
            "reward_model": 7.0,
        }
    )


def share_of(found: Draws, kl: float, share: float) -> pd.DataFrame:
    """An arm with so much of the optimum's gain at a KL."""
    base = found.found.reference
    gain = float(reward_at(found.found, kl)) - base.mean()
    return scored(base + share * gain, kl)


@pytest.fixture(scope="module")
def known() -> Draws:
    found = read_draws(drawn(), 30.0)
    assert found is not None
    return found


@pytest.fixture
def samples(known: Draws) -> dict[str, pd.DataFrame]:
    return {
        "sft": scored(known.found.reference, 0.0),
        DPO[0].name: share_of(known, 1.8, 0.8),
        DPO[1].name: share_of(known, 0.8, 0.9),
        PPO.name: share_of(known, 1.5, 0.5),
        LOST.name: scored(known.found.reference, 300.0),
    }


def looks(known: Draws, prompts: int) -> pd.DataFrame:
    """`curve.parquet` of an arm: two draws of its first prompts, twice."""
    points = [(5, share_of(known, 0.6, 0.4)), (9, share_of(known, 1.7, 1.0))]
    tables = [t[:prompts].assign(draw=d, step=step) for step, t in points for d in (0, 1)]
    return pd.concat(tables, ignore_index=True)


def test_draws_become_a_matrix_in_the_prompts_order() -> None:
    table = drawn().sample(frac=1, random_state=3)
    found = read_draws(table, 30.0)
    assert found is not None
    assert found.prompts.tolist() == NAMES.tolist()
    np.testing.assert_array_equal(found.rewards, REWARDS)
    assert read_draws(table[:0], 30.0) is None
    assert read_draws(table.assign(gold_reward=np.nan), 30.0) is None


def test_shares_of_the_optimum(known: Draws, samples: dict[str, pd.DataFrame]) -> None:
    found = frontier(ARMS, samples, {DPO[0].name: looks(known, 12)}, known, SETTINGS)
    arms = {row["arm"]: row for row in found["arms"]}
    for name, share in ((DPO[0].name, 0.8), (DPO[1].name, 0.9), (PPO.name, 0.5)):
        assert arms[name]["fraction"] == pytest.approx(share)
        assert arms[name]["fraction_low"] <= share <= arms[name]["fraction_high"]
        assert arms[name]["note"] == ""
    assert np.isnan(arms["sft"]["fraction"])
    assert "no KL to speak of" in arms["sft"]["note"]
    assert np.isnan(arms[LOST.name]["fraction"])
    assert "beyond" in arms[LOST.name]["note"]
    best = found["optimum"]
    assert (best["prompts"], best["draws"]) == (PROMPTS, DRAWS)
    assert best["kl"][-1] == pytest.approx(best["trusted_kl"])
    assert min(best["ess"]) > 29
    assert found["violations"] == []
    several = found["best_of_n"]
    assert [point["n"] for point in several] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert {point["scorer"] for point in several} == {"gold"}
    assert several[3]["kl"] == best_of_n_kl(8)
    assert several[0]["reward"] == pytest.approx(REWARDS.mean())


def test_best_of_n_is_told_by_both_scorers(known: Draws, samples: dict[str, pd.DataFrame]) -> None:
    """A reward model that ranks the other way round takes the worst of n."""
    several = frontier(ARMS, samples, {}, known._replace(scores=-known.rewards), SETTINGS)
    gold, model = (
        [p["reward"] for p in several["best_of_n"] if p["scorer"] == scorer]
        for scorer in ("gold", "reward_model")
    )
    assert len(gold) == len(model) == 8
    assert gold[0] == pytest.approx(model[0])  # one draw
    assert gold[-1] > gold[0] > model[-1]
    assert model[-1] == pytest.approx(-best_of_n_rewards(-known.rewards, 128).mean())


def test_what_the_draws_luck_explains_is_not_told(known: Draws) -> None:
    """Draws whose log-ratio lies above their KL by chance, with a reward that goes with it."""
    luck = np.random.default_rng(5).normal(0.5, 1.0, size=(4, PROMPTS))
    fair = share_of(known, 0.8, 0.9)
    drawn = pd.concat(
        [
            fair.assign(
                seed=seed,
                policy_logprob=fair["policy_logprob"] + own,
                gold_reward=fair["gold_reward"] + 0.3 * own,
                kl=fair["kl"] + 0.1 * own,
            )
            for seed, own in enumerate(luck)
        ]
    )
    found = frontier([SFT, DPO[0]], {"sft": fair, DPO[0].name: drawn}, {}, known, SETTINGS)
    row = found["arms"][1]
    assert drawn["gold_reward"].mean() > fair["gold_reward"].mean() + 0.05
    assert row["reward"] == pytest.approx(fair["gold_reward"].mean())
    assert row["kl"] == pytest.approx(0.8)
    assert row["fraction"] == pytest.approx(0.9)
    look = drawn.assign(draw=drawn["seed"], step=9, log_ratio=drawn["policy_logprob"] + 9.8)
    samples = {"sft": fair, DPO[0].name: fair}
    found = frontier([SFT, DPO[0]], samples, {DPO[0].name: look}, known, SETTINGS)
    assert found["curves"][DPO[0].name] == [
        {"step": 9, "kl": pytest.approx(0.8), "reward": pytest.approx(row["reward"])}
    ]


def test_methods_as_wholes(known: Draws, samples: dict[str, pd.DataFrame]) -> None:
    curves = {DPO[0].name: looks(known, 12)}
    found = frontier(ARMS, samples, curves, known, SETTINGS)
    methods = {row["method"]: row for row in found["methods"]}
    assert list(methods) == ["DPO", "PPO", "Unlikelihood"]
    dpo = methods["DPO"]
    assert (dpo["settings"], dpo["looks"]) == (2, 2)
    assert (dpo["low_kl"], dpo["high_kl"]) == (1.0, known.found.trusted_kl)
    assert 2 < known.found.trusted_kl < 4
    assert methods["PPO"]["area"] < dpo["area"] < 0.9
    assert dpo["against"] is None
    assert np.isnan(dpo["difference"])
    ppo = methods["PPO"]
    assert ppo["against"] == "DPO"
    assert ppo["difference"] == pytest.approx(ppo["area"] - dpo["area"])
    assert ppo["difference_low"] < ppo["difference"] < ppo["difference_high"]
    assert methods["PPO"]["looks"] == 0
    assert np.isnan(methods["PPO"]["looks_area"])
    assert (dpo["prompts"], dpo["looks_prompts"]) == (PROMPTS, 12)
    # Its last look was of the optimum, on other prompts than its end was.
    assert dpo["looks_area"] > dpo["area"] + 0.03
    assert found["curves"][DPO[0].name][0]["step"] == 5
    assert found["curves"][DPO[0].name][1]["kl"] == pytest.approx(1.7)


def test_a_setting_s_seeds_are_one_point_of_its_method(
    known: Draws, samples: dict[str, pd.DataFrame]
) -> None:
    """The luckiest of three seeds is no setting that anyone could choose."""
    seeds = [DPO[0].model_copy(update={"seed": seed}) for seed in (1, 2)]
    lucky = samples | {
        seeds[0].name: share_of(known, 1.8, 0.9),
        seeds[1].name: share_of(known, 1.8, 0.7),
    }
    curves = {arm.name: looks(known, 12) for arm in (DPO[0], *seeds)}
    alone, pooled = (
        frontier([*ARMS, *more], table, ways, known, SETTINGS)["methods"][0]
        for more, table, ways in (
            ([], samples, {DPO[0].name: curves[DPO[0].name]}),
            (seeds, lucky, curves),
        )
    )
    assert (pooled["settings"], pooled["looks"]) == (alone["settings"], alone["looks"]) == (2, 2)
    for name in ("area", "looks_area"):
        assert pooled[name] == pytest.approx(alone[name])
    # Of each seed alone, where every setting has more than one.
    assert np.isnan(pooled["area_seed_sd"])
    other = DPO[1].model_copy(update={"seed": 1})
    both = [SFT, *DPO, seeds[0], other]
    found = frontier(both, lucky | {other.name: samples[DPO[1].name]}, {}, known, SETTINGS)
    single = [
        frontier([SFT, arm, DPO[1]], lucky, {}, known, SETTINGS)["methods"][0]["area"]
        for arm in (DPO[0], seeds[0])
    ]
    assert found["methods"][0]["area_seed_sd"] == pytest.approx(np.std(single, ddof=1))


def test_an_arm_above_the_optimum_is_named(known: Draws, samples: dict[str, pd.DataFrame]) -> None:
    samples[PPO.name] = share_of(known, 1.0, 3.0)
    samples[LOST.name] = scored(known.found.reference + 1e4, 300.0)  # above the bound out there
    found = frontier(ARMS, samples, {}, known, SETTINGS)
    assert found["violations"] == [PPO.name, LOST.name]
    # A tenth more is found although rewards differ by more from prompt to prompt: by those alone
    # that the same prompts' optimum does not explain.
    samples[PPO.name] = share_of(known, 1.0, 1.1)
    samples[LOST.name] = scored(known.found.reference, 300.0)
    assert frontier(ARMS, samples, {}, known, SETTINGS)["violations"] == [PPO.name]
    # As much as the optimum is none, and neither is more by chance.
    noise = 0.5 * np.random.default_rng(1).normal(size=PROMPTS)
    samples[PPO.name] = share_of(known, 1.0, 1.02).assign(
        gold_reward=lambda table: table["gold_reward"] + noise - noise.mean()
    )
    samples[LOST.name] = scored(known.found.reference, 300.0)
    assert frontier(ARMS, samples, {}, known, SETTINGS)["violations"] == []


def test_pi_star_itself_has_all_of_it(known: Draws, samples: dict[str, pd.DataFrame]) -> None:
    best = tilt(REWARDS, [1.5])
    samples[PPO.name] = scored(best.reward[:, 0], best.kl[:, 0])
    found = frontier(ARMS, samples, {}, known, SETTINGS)
    row = next(row for row in found["arms"] if row["arm"] == PPO.name)
    assert row["fraction"] == pytest.approx(1, abs=2e-3)
    assert found["violations"] == []


def test_other_prompts_are_refused(known: Draws, samples: dict[str, pd.DataFrame]) -> None:
    samples = {name: table[1:] for name, table in samples.items()}
    with pytest.raises(UserError, match="out/optimum and the samples of sft are not about"):
        frontier(ARMS, samples, {}, known, SETTINGS)


def test_without_an_optimum_only_the_arms_are_told(samples: dict[str, pd.DataFrame]) -> None:
    human = {name: table.assign(gold_reward=np.nan) for name, table in samples.items()}
    settings = SETTINGS.model_copy(update={"judge": "reward_model"})
    found = tidy(frontier(ARMS, human, {}, None, settings))
    assert found["optimum"] is None
    assert found["best_of_n"] == found["methods"] == found["violations"] == []
    for row in found["arms"]:
        assert row["reward"] == 7.0
        assert row["optimum"] is row["fraction"] is row["fraction_low"] is None
    axes = draw_frontier(found).axes[0]
    assert axes.get_ylabel().startswith("reward model's score")
    assert "optimum" not in alt_text(found)


def test_the_figure(known: Draws, samples: dict[str, pd.DataFrame]) -> None:
    curves = {DPO[0].name: looks(known, 12)}
    document = tidy(frontier(ARMS, samples, curves, known, SETTINGS))
    figure = draw_frontier(document)
    (axes,) = figure.axes
    right = axes.get_xlim()[1]
    assert right < WIDEST  # not as far as the arm that went astray
    assert [text.get_text() for text in axes.texts] == ["KL 300 →"]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words[2:] == ["SFT", "DPO", "Unlikelihood", "PPO", "while it trained"]
    assert "1,000 draws" in words[0]
    ends = [float(np.max(line.get_xdata())) for line in axes.lines]
    assert pytest.approx(document["optimum"]["trusted_kl"]) in ends
    assert max(ends) <= right
    text = alt_text(document)
    assert f"{DPO[0].name}: KL 1.80" in text
    assert "80% of the optimum's gain" in text


def test_where_the_kl_is_spent(known: Draws) -> None:
    """One that follows the optimum prompt by prompt, and one that spends alike on all."""
    best = kl_at(known.found, 1.2)
    other = DPO[0].model_copy(update={"seed": 1})
    samples = {
        "sft": scored(known.found.reference, 0.0),
        DPO[0].name: scored(LEVELS, best + 0.1),
        other.name: scored(LEVELS, best - 0.1),
        PPO.name: scored(LEVELS, 1.2),
        BEST.name: scored(LEVELS, 1.2),
        PPO_GT.name: scored(LEVELS, np.nan),
        LOST.name: scored(LEVELS, 300.0 + LEVELS),
    }
    arms = [SFT, DPO[0], other, PPO, BEST, PPO_GT, LOST]
    rows = by_prompt(arms, samples, known, "gold_reward", SETTINGS)
    assert [row["method"] for row in rows] == ["DPO"] * 4 + ["PPO"] * 4
    assert [(row["quarter"], row["prompts"]) for row in rows[:4]] == [(n, 6) for n in (1, 2, 3, 4)]
    assert rows[0]["seeds"] == 2
    order = np.argsort(known.found.reference)
    for row, part in zip(rows[:4], np.split(order, 4), strict=True):
        assert row["reference"] == pytest.approx(known.found.reference[part].mean())
        assert row["kl"] == pytest.approx(best[part].mean())
        assert row["optimum_kl"] == pytest.approx(best[part].mean())
        assert row["kl_low"] <= row["kl"] <= row["kl_high"]
    for row, like in zip(rows[4:], rows[:4], strict=True):
        assert row["kl"] == pytest.approx(1.2, abs=1e-5)
        assert row["optimum_kl"] == pytest.approx(like["optimum_kl"], abs=1e-4)
    assert by_prompt([SFT, DPO[0]], samples, None, "gold_reward", SETTINGS) == []

    panels = draw_by_prompt(tidy(rows)).axes
    assert [axes.get_title() for axes in panels] == ["DPO", "PPO"]
    optimum, own = panels[0].lines
    np.testing.assert_allclose(optimum.get_ydata(), own.get_ydata(), atol=1e-6)
    assert np.ptp(panels[1].lines[1].get_ydata()) == 0


def test_many_methods_settings_and_rates_are_told_apart_and_a_single_prompt_has_no_band() -> None:
    row = {"method": "DPO", "setting": "β = 1", "learning_rate": 0.1, "kl": 1.0, "optimum_kl": 1.0}
    rows = [
        {**row, "method": method, "setting": point, "learning_rate": rate, "quarter": quarter}
        | ({"kl_low": 0.9, "kl_high": 1.1} if quarter == 1 else {"kl_low": None, "kl_high": None})
        for method in ("DPO", "IPO", "SLiC", "PPO", "PPO-GT")
        for point in ("β = 1", "β = 2", "β = 3")
        for rate in (0.1, 0.2)
        for quarter in (1, 2, 3, 4)
    ]
    figure = draw_by_prompt(rows)
    assert len(figure.axes) == 5
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[:2] == ["DPO, β = 1, rate 0.1", "DPO, β = 1, rate 0.2"]
    assert len(texts) == len(set(texts)) == 31
    own = figure.axes[0].lines[1::2]
    assert len({(line.get_color(), str(line._dash_pattern)) for line in own}) == 6
    assert len(figure.axes[0].collections) == 0


def test_fractions_are_of_rows_at_one() -> None:
    arm = {"arm": "a", "fraction": 0.5, "fraction_low": 0.4, "fraction_high": 0.6}
    rows = [{"arm": name, "temperature": t} for name in ("a", "b") for t in (0.0, 1.0)]
    found = with_fractions(rows, [arm])
    assert [row["optimum_fraction"] for row in found] == [None, 0.5, None, None]
    assert (found[1]["optimum_fraction_low"], found[1]["optimum_fraction_high"]) == (0.4, 0.6)


@pytest.mark.parametrize(
    "method, expected",
    [
        ("dpo", 12.0),
        ("ipo", 12.0),
        ("online_dpo", 10.0),
        ("ppo", 110.0),
        ("ppo_gt", 110.0),
        ("unlikelihood", 10.0),
    ],
)
def test_the_whole_cost_has_what_the_method_needs(method: str, expected: float) -> None:
    costs = {"a": 10.0, "reference": 2.0, "reward": 100.0}
    assert whole({"arm": "a", "method": method}, costs) == expected
    assert np.isnan(whole({"arm": "b", "method": method}, costs))


def test_the_files_and_the_report(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = workspace(draws=200, prompts=20, resamples=100)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_frontier(params, tmp_path / name)
    for name in ("by_prompt.csv", "by_prompt.png", "frontier.json", "table.csv", "frontier.png"):
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert content == Path("out/frontier", name).read_bytes()
    with open("out/frontier/table.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["arm"] for line in lines][:2] == ["sft", "dpo-b0.1-lr0.001-s0"]
    document = json.loads(Path("out/frontier/frontier.json").read_text())
    document["violations"] = ["dpo-b0.1-lr0.001-s0"]
    Path("out/frontier/frontier.json").write_text(json.dumps(document))
    build(params, tmp_path)
    rows = render(params, tmp_path)
    assert (tmp_path / "plots/frontier.png").read_bytes() == content
    own = {row["arm"]: row for row in rows if row["temperature"] == 1.0}
    for line in lines:
        row, text = own[line["arm"]], line["fraction"]
        assert row["optimum_fraction"] == (float(text) if text else None)
        assert (row["train_flops"], row["train_seconds"]) == (1e12, 41.25)
    assert any(row["optimum_fraction"] is not None for row in own.values())
    assert own["dpo-b0.1-lr0.001-s0"]["whole_flops"] == 3e12
    assert own["dpo-b0.1-lr0.001-s0"]["whole_tokens"] == 123456 + 11 + 2000
    assert own["dpo-b0.1-lr0.001-s0"]["whole_seconds"] is None  # the reference's was not taken
    assert own["ppo-b0.1-kl0-lr0.0003-s0"]["whole_flops"] == 7e12
    assert own["ppo-b0.1-kl0-lr0.0003-s0"]["whole_seconds"] == 53.25
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [tag for tag, _ in Page(page).tags].count("img") == 8
    assert "dpo-b0.1-lr0.001-s0 lies above the optimum" in page
    assert "% of the optimum&#39;s area" in page or "% of the optimum's area" in page
    assert "where it is cut off" in page  # the figure's alternative text
    final = tasks.compare._final(
        [r for r in rows if r["arm"] == "dpo-b3.0-lr0.001-s0"],
        params.model_copy(update={"promotion": SimpleNamespace(temperature=0.5)}),
    )
    assert final["optimum_fraction"] == own["dpo-b3.0-lr0.001-s0"]["optimum_fraction"]
    assert capsys.readouterr().err == ""


def test_the_stage_warns(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = workspace(draws=64, prompts=12, resamples=100)
    monkeypatch.setattr(tasks.frontier, "load_params", lambda: params)
    name = "ppo-b0.1-kl0-lr0.0003-s0"
    path = Path(f"out/samples/{name}.parquet")
    table = pd.read_parquet(path)
    table["gold_reward"] += 30
    table.to_parquet(path)
    tasks.frontier.main()
    written = json.loads(Path("out/frontier/frontier.json").read_text())
    assert written["violations"] == [name]
    assert f"warning: {name} lies above the optimum" in capsys.readouterr().err
