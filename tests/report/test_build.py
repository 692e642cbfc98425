"""From stages' outputs to estimates, plots, tables and page; and what missing inputs say."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from betaflow.config import Arm, Params
from betaflow.errors import UserError
from betaflow.report.build import build, render
from betaflow.report.table import console_rows, console_table

Workspace = Callable[..., Params]


DPO = "dpo-b0.1-lr0.001-s0"
PPO = "ppo-b0.1-kl0-lr0.0003-s0"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_everything_twice_with_the_same_bytes(workspace: Workspace, tmp_path: Path) -> None:
    params = workspace()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        build(params, tmp_path / name)
        render(params, tmp_path / name)
    found = contents(tmp_path / "one")
    assert sorted(found) == [
        "estimates.json",
        "figures.csv",
        "metrics.json",
        "pairwise.csv",
        "plots/alignment_tax.png",
        "plots/pairwise.png",
        "plots/reward_kl.png",
        "plots/reward_model.png",
        "plots/training_dpo.png",
        "plots/training_ppo.png",
        "plots/win_rate.png",
        "report.html",
        "table.csv",
        "table.json",
    ]
    assert found == contents(tmp_path / "two")


def test_wall_time_is_in_the_table_and_in_nothing_that_is_hashed(
    workspace: Workspace, tmp_path: Path
) -> None:
    params = workspace()
    folder = tmp_path / "compare"
    folder.mkdir()
    build(params, folder)
    before = contents(folder)
    Path(f"out/.local/timings/{DPO}.json").write_text('{"train_seconds": 99.5}')
    Path(f"out/.local/timings/{PPO}.json").unlink()
    rows = render(params, folder)
    assert {row["arm"]: row["train_seconds"] for row in rows}[DPO] == 99.5
    assert {row["arm"]: row["train_seconds"] for row in rows}[PPO] is None
    after = contents(folder)
    assert {name: after[name] for name in before} == before


def test_wall_time_of_another_training_by_the_same_name_is_not_shown(
    workspace: Workspace, tmp_path: Path
) -> None:
    """DVC may restore a model from its cache: what was measured last is of other settings."""
    params = workspace()
    build(params, tmp_path)
    summary, timing = Path(f"out/dpo/{DPO}/summary.json"), Path(f"out/.local/timings/{DPO}.json")
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"fingerprint": "this"}))
    for measured, shown in (("other", None), ("this", 99.5)):
        timing.write_text(json.dumps({"train_seconds": 99.5, "fingerprint": measured}))
        rows = render(params, tmp_path)
        assert {row["arm"]: row["train_seconds"] for row in rows}[DPO] == shown


def test_tables(workspace: Workspace, tmp_path: Path) -> None:
    params = workspace()
    build(params, tmp_path)
    render(params, tmp_path)
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [line["arm"] for line in lines] == [row["arm"] for row in rows]
    assert len(rows) == 6 * 3
    grid = ["beta", "alpha", "target_kl", "n", "scorer", "learning_rate", "seed"]
    needed = ["arm", "method", *grid, "temperature"]
    assert list(lines[0])[:10] == needed
    for name in ("gold_reward", "kl", "win_rate_vs_sft", "lc_win_rate_vs_sft", "win_rate_vs_ppo"):
        for line, row in zip(lines, rows, strict=True):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
            assert float(line[name]) == row[name]
    assert lines[0]["beta"] == ""
    assert rows[0]["beta"] is None
    assert lines[3]["train_seconds"] == "41.25"
    assert "betaflow_cloze/acc_vs_sft" in lines[0]


def test_every_method_is_an_arm_like_the_others(workspace: Workspace, tmp_path: Path) -> None:
    params = workspace(every_method=True)
    build(params, tmp_path)
    rows = render(params, tmp_path)
    temperatures: dict[str, list[float]] = {}
    for row in rows:
        temperatures.setdefault(row["arm"], []).append(row["temperature"])
    assert len(temperatures) == 1 + 4 * 2 + 2 + 2 * 2 + 2 * 2
    for arm, found in temperatures.items():
        assert found == ([1.0] if arm.startswith("best_of_n") else [0.0, 0.5, 1.0])
    chosen = next(row for row in rows if row["arm"] == "best_of_n-gold-n16")
    point = {name: chosen[name] for name in Arm.model_fields}
    assert point == Arm(method="best_of_n", n=16, scorer="gold").model_dump()
    assert chosen["train_tokens"] is None
    assert chosen["train_seconds"] is None
    assert "betaflow_cloze/acc" not in chosen
    # It wins most, and is no policy.
    assert chosen["win_rate_vs_sft"] > 0.9 > chosen["win_rate_vs_ppo_low"] > 0.5
    document = json.loads((tmp_path / "estimates.json").read_text())
    assert document["best"] == DPO
    assert document["ppo_arm"] == PPO
    assert len(document["leads"]) == 13
    assert all("best_of_n" not in row["arm"] for row in document["leads"])
    # Two arms of each could be promoted, and power is that of an interval for all four.
    assert params.promotion.methods == ["dpo", "ppo"]
    assert document["power"]["confidence"] == pytest.approx(1 - 0.05 / 4, abs=1e-6)
    drawn = {path.stem for path in (tmp_path / "plots").iterdir()}
    trained = ("dpo", "ipo", "slic", "online_dpo", "preferred_ft", "unlikelihood", "ppo", "ppo_gt")
    whole = {"alignment_tax", "pairwise", "reward_kl", "reward_model", "win_rate"}
    assert drawn == whole | {f"training_{method}" for method in trained}


def test_power_of_a_best_arm_that_may_not_be_promoted_unnamed_is_of_one_among_all(
    workspace: Workspace, tmp_path: Path
) -> None:
    params = workspace()
    rules = params.promotion.model_copy(update={"methods": ["ppo"]})
    build(params.model_copy(update={"promotion": rules}), tmp_path)
    document = json.loads((tmp_path / "estimates.json").read_text())
    assert document["power"]["arm"].startswith("dpo")
    arms = {row["arm"] for row in document["rows"] if row["method"] not in ("sft", "best_of_n")}
    assert len(arms) > len([arm for arm in arms if arm.startswith("ppo")]) + 1
    assert document["power"]["confidence"] == pytest.approx(1 - 0.05 / len(arms), abs=1e-6)


def test_metrics_are_flat_numbers_per_arm(workspace: Workspace, tmp_path: Path) -> None:
    params = workspace()
    build(params, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["sft"]["win_rate_vs_sft"] == 0.5
    assert metrics["sft"]["kl"] == 0.0
    assert all(isinstance(v, int | float) for arm in metrics.values() for v in arm.values())


def test_without_a_gold_reward(workspace: Workspace, tmp_path: Path) -> None:
    params = workspace(gold=False)
    build(params, tmp_path)
    render(params, tmp_path)
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        line = list(csv.DictReader(file))[3]
    assert line["gold_reward"] == line["gold_reward_high"] == line["gold_reward_ood"] == ""
    assert float(line["reward_model"]) > 0
    assert float(line["win_rate_vs_sft"]) > 0.5
    page = (tmp_path / "report.html").read_text()
    assert "it favours PPO" in page
    assert "gold reward, other domain" not in page


def test_an_arm_identical_to_sft(workspace: Workspace, tmp_path: Path) -> None:
    params = workspace()
    shutil.copy("out/samples/sft.parquet", f"out/samples/{DPO}.parquet")
    rows = {(r["arm"], r["temperature"]): r for r in build(params, tmp_path)}
    for temperature in (0.0, 0.5, 1.0):
        assert rows[DPO, temperature]["win_rate_vs_sft"] == 0.5


def test_console_table(workspace: Workspace, tmp_path: Path) -> None:
    params = workspace()
    build(params, tmp_path)
    rows = render(params, tmp_path)
    lines = console_table(rows).splitlines()
    assert len(lines) == 2 + 18
    assert max(map(len, lines)) <= 120
    short = console_rows(rows)
    assert short[0]["win % vs SFT"] == "50.0"
    assert "±" in short[3]["gold reward"]
    assert "to" in short[3]["win % vs SFT"]
    assert "reward model" in console_rows(rows, "reward_model")[0]


@pytest.mark.parametrize(
    "path",
    [
        "out/arms.json",
        f"out/samples/{DPO}.parquet",
        f"out/benchmark/{PPO}.json",
        f"out/dpo/{DPO}/summary.json",
        f"out/ppo/{PPO}/metrics.jsonl",
    ],
)
def test_a_missing_input_is_named(workspace: Workspace, tmp_path: Path, path: str) -> None:
    params = workspace()
    Path(path).unlink()
    with pytest.raises(UserError, match=f"{path} is missing"):
        build(params, tmp_path)


def test_a_damaged_input_is_named(workspace: Workspace, tmp_path: Path) -> None:
    params = workspace()
    Path(f"out/samples/{DPO}.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="is damaged"):
        build(params, tmp_path)


def test_a_model_that_did_not_sample_at_some_seed(workspace: Workspace, tmp_path: Path) -> None:
    params = workspace()
    path = Path(f"out/samples/{DPO}.parquet")
    table = pd.read_parquet(path)
    table[table["seed"] == 0].to_parquet(path)
    with pytest.raises(UserError, match="have no partner"):
        build(params, tmp_path)


def test_one_prompt_and_no_benchmark_make_a_report_without_intervals(
    workspace: Workspace, tmp_path: Path
) -> None:
    params = workspace(prompts=1)
    for path in Path("out/benchmark").iterdir():
        path.write_text('{"results": {}}')
    build(params, tmp_path)
    rows = render(params, tmp_path)
    row = next(r for r in rows if r["arm"] == DPO and r["temperature"] == 1.0)
    for name in ("win_rate_vs_sft", "lc_win_rate_vs_sft", "rating", "distinct"):
        assert row[name] is not None
        assert row[f"{name}_low"] is None
    assert row["alignment_tax"] is None
    assert not (tmp_path / "plots/alignment_tax.png").exists()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Alignment tax" not in page
    assert "this run has 1. Raise sample.prompts" in page
