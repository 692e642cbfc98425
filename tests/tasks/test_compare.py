"""The MLflow runs that `compare` fills in: one for every arm, with a model or without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from betaflow.config import Arm, Params, arms
from betaflow.io import write_json, write_jsonl
from tasks import compare, tracking

USAGE = {
    "answers": 12,
    "prompt_tokens": 3400,
    "completion_tokens": 60,
    "unreported": 1,
    "spend": 0.25,
    "models": ["m-1"],
}


def write_summary(folder: Path, about: dict[str, Any]) -> None:
    rest = {"fingerprint": about["arm"] * 4, "settings": {}, "metrics": {}}
    write_json(folder / "summary.json", {**about, **rest})
    write_jsonl(folder / "metrics.jsonl", [{"step": 0, "loss": 0.5}])


def test_every_arm_gets_a_run_and_only_models_are_logged(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(compare, "_publish", lambda _: None)
    write_json("out/data/statistics.json", {})
    chosen = Arm(method="best_of_n", scorer="gold", n=4)
    sweep = [*arms(params)[:2], chosen]
    monkeypatch.setattr(compare, "arms", lambda _: sweep)
    write_summary(Path("out/reward"), {"arm": "reward", "method": "reward"})
    for arm in sweep[:2]:
        write_summary(arm.model_dir, {"arm": arm.name, **arm.model_dump()})
    judged = {"judge": "llm", "model": "m", "controls": {"failed": ["null"]}, "usage": USAGE}
    write_json("out/judgements/summary.json", judged)
    Path("out/samples").mkdir()
    Path(f"out/samples/{chosen.name}.parquet").touch()
    rows = [
        {
            "arm": arm.name,
            **arm.model_dump(),
            "temperature": 1.0,
            "win_rate_vs_sft": (4 + place) / 8,
            "lc_win_rate_vs_sft": 0.5,
            "rating": 100.0 * place,
            "rating_low": None,
        }
        for place, arm in enumerate(sweep)
    ]
    compare.fill_in(params, rows)

    tracker = tracking.Tracker(params)
    runs = {run.info.run_name: run for run in tracker.client.search_runs([tracker.experiment])}
    names = {arm.name for arm in sweep}
    assert set(runs) == {"reward", f"sweep-{tracker.sweep[:8]}", *names}
    found = runs[chosen.name].data
    assert found.params == {"method": "best_of_n", "n": "4", "scorer": "gold"}
    assert found.metrics == {
        "win_rate_vs_sft": 0.75,
        "win_rate_vs_sft_T1": 0.75,
        "lc_win_rate_vs_sft": 0.5,
        "lc_win_rate_vs_sft_T1": 0.5,
        "rating": 200.0,
    }
    assert "loss" in runs[sweep[1].name].data.metrics
    logged = tracker.client.search_logged_models([tracker.experiment])
    owners = {model.source_run_id for model in logged}
    assert owners == {runs[arm.name].info.run_id for arm in sweep[:2]}

    sweep_run = tracker.client.get_run(tracker.sweep_run.info.run_id).data
    assert sweep_run.metrics == {f"judge/{k}": v for k, v in USAGE.items() if k != "models"}
    assert sweep_run.tags["betaflow.judge"] == "m"
    assert sweep_run.tags["betaflow.controls_failed"] == "null"

    # A judge that costs nothing.
    write_json(
        "out/judgements/summary.json", judged | {"model": None, "judge": "gold", "usage": None}
    )
    compare.fill_in(params, rows)
    sweep_run = tracker.client.get_run(tracker.sweep_run.info.run_id).data
    assert sweep_run.tags["betaflow.judge"] == "gold"
