"""MLflow, for real: one run an arm, found again by its inputs; away, nothing is lost."""

from __future__ import annotations

import math
import subprocess
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dvc.lock import make_lock
from sqlalchemy.exc import OperationalError

import tasks.track
from betaflow.config import Arm, Params
from betaflow.errors import UserError
from tasks import tracking

ABOUT = {
    "arm": "dpo-b0.1-lr0.001-s0",
    "method": "dpo",
    "beta": 0.1,
    "learning_rate": 0.001,
    "seed": 0,
    "fingerprint": "f" * 64,
    "settings": {"training": {"epochs": 1.0}},
}
ROWS = [{"step": step, "loss": 1.0 / (step + 1), "grad_norm": 2.0} for step in range(30)]
ROWS[20]["eval/loss"] = 0.9


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "out/data").mkdir(parents=True)
    (tmp_path / "out/data/sft_train.jsonl").write_text('{"text": "x"}\n')
    return tmp_path


def train(params: Params, rows: list[dict[str, Any]] = ROWS) -> None:
    with tracking.training_run(params, ABOUT) as log:
        for row in rows:
            log.step(row)
        log.finish({"eval/loss": 0.5}, len(rows))


def test_a_run_holds_params_steps_final_figures_and_data(workspace: Path, params: Params) -> None:
    train(params)
    tracker = tracking.Tracker(params)
    run = tracker.client.get_run(tracker.arm_run(ABOUT).info.run_id)
    assert run.info.run_name == ABOUT["arm"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == tracker.sweep_run.info.run_id
    assert run.data.params["beta"] == "0.1"
    assert run.data.params["training.epochs"] == "1.0"
    assert run.data.metrics["eval/loss"] == 0.5  # the final one, not an evaluation's before it
    history = tracker.client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(r["step"], r["loss"]) for r in ROWS]
    assert [d.dataset.name for d in run.inputs.dataset_inputs] == ["out/pairs"]
    for method, data in (("ppo", "out/data"), ("ipo", "out/pairs"), ("online_dpo", "out/data")):
        assert tracking._dataset(method, {}).dataset.name == data


LOCK = "stages:\n  sft:\n    outs:\n    - path: out/sft\n      md5: abc.dir\n"


def test_runs_hold_dvcs_hashes_of_what_arms_share(workspace: Path, params: Params) -> None:
    other = "  sample:\n    outs:\n    - path: out/samples/sft.parquet\n      md5: def\n"
    (workspace / "dvc.lock").write_text(LOCK + other)
    train(params)
    tracker = tracking.Tracker(params)
    tags = tracker.client.get_run(tracker.arm_run(ABOUT).info.run_id).data.tags
    found = {name: value for name, value in tags.items() if name.startswith("dvc.")}
    assert found == {"dvc.out/sft": "abc.dir"}


def test_a_lock_file_that_dvc_is_writing_is_waited_for(workspace: Path) -> None:
    (workspace / ".dvc/tmp").mkdir(parents=True)
    lock = make_lock(str(workspace / ".dvc/tmp/lock"))
    lock.lock()
    (workspace / "dvc.lock").write_text("")  # as DVC begins to write it
    with ThreadPoolExecutor() as pool:
        found = pool.submit(tracking.dvc_hashes)
        with pytest.raises(TimeoutError):
            found.result(timeout=0.3)
        (workspace / "dvc.lock").write_text(LOCK)
        lock.unlock()
        assert found.result(timeout=10) == {"out/sft": "abc.dir"}
    lock.lock()  # it was given back
    lock.unlock()


def test_a_lock_held_for_long_is_not_waited_for(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / ".dvc/tmp").mkdir(parents=True)
    monkeypatch.setattr(tracking, "DVC_WAIT", 0.2)
    lock = make_lock(str(workspace / ".dvc/tmp/lock"))
    lock.lock()
    try:
        assert tracking.dvc_hashes() == {}  # no file
        for content in ("", "stages: ["):
            (workspace / "dvc.lock").write_text(content)
            assert tracking.dvc_hashes() == {}
    finally:
        lock.unlock()


def test_where_the_runs_are_is_told_if_it_is_elsewhere(
    workspace: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # MLflow sets it: put back in the end
    tracking.Tracker(params)
    assert tracking.server() is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://name:hunter2@127.0.0.1:9")
    assert tracking.server() == "http://…@127.0.0.1:9"


def test_what_is_compared_no_more_is_not_a_number(workspace: Path, params: Params) -> None:
    """PPO left the grid: what the arm won against it is not of this comparison."""
    train(params)
    tracker = tracking.Tracker(params)
    rates = {"win_rate_vs_sft": 0.8, "win_rate_vs_ppo": 0.5, "eval/loss": 0.4}
    for compared in (rates, {"win_rate_vs_sft": 0.7}, rates):
        tracker.log_compared(tracker.arm_run(ABOUT), {"eval/loss": 0.5}, compared, len(ROWS))
        found = tracker.arm_run(ABOUT).data.metrics
        assert found["win_rate_vs_sft"] == compared["win_rate_vs_sft"]
        assert found["eval/loss"] == compared.get("eval/loss", 0.5)
        assert found["win_rate_vs_ppo"] == compared.get("win_rate_vs_ppo") or (
            math.isnan(found["win_rate_vs_ppo"]) and "win_rate_vs_ppo" not in compared
        )


def test_runs_tell_the_commit_of_what_they_show(workspace: Path, params: Params) -> None:
    """A lock that every stage writes is no change of the code."""

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *who, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    Path("code.py").write_text("1\n")
    Path("dvc.lock").write_text("stages: {}\n")
    git("init", "-q")
    git("add", "code.py", "dvc.lock")
    commits = []
    for dirty in (False, True):
        git("commit", "-q", "--allow-empty", "-m", "a change")
        commits.append(git("rev-parse", "HEAD"))
        Path("dvc.lock").write_text(LOCK)
        if dirty:
            Path("code.py").write_text("2\n")
        train(params)
        tracker = tracking.Tracker(params)
        tags = tracker.arm_run(ABOUT).data.tags
        assert (tags["mlflow.source.git.commit"], tags["git.dirty"]) == (
            commits[-1],
            str(dirty).lower(),
        )
    assert commits[0] != commits[1]


def test_an_arm_without_a_model_is_known_by_its_samples(workspace: Path, params: Params) -> None:
    samples = workspace / "out/samples/best_of_n-gold-n16.parquet"
    samples.parent.mkdir()
    samples.write_bytes(b"draws")
    arm = Arm(method="best_of_n", scorer="gold", n=16)
    about = tracking.summary_without_model(arm)
    tracker = tracking.Tracker(params)
    run = tracker.arm_run(about)
    tracker.describe(run, about)
    found = tracker.client.get_run(run.info.run_id)
    assert found.data.params == {"method": "best_of_n", "n": "16", "scorer": "gold"}
    assert tracker.arm_run(tracking.summary_without_model(arm)).info.run_id == run.info.run_id
    samples.write_bytes(b"other draws")
    assert tracker.arm_run(tracking.summary_without_model(arm)).info.run_id != run.info.run_id


def test_doing_a_stage_again_makes_no_twin_and_no_double_points(
    workspace: Path, params: Params
) -> None:
    train(params)
    train(params)
    tracker = tracking.Tracker(params)
    runs = tracker.client.search_runs([tracker.experiment])
    assert sorted(r.data.tags["betaflow.method"] for r in runs) == ["dpo", "sweep"]
    run = tracker.arm_run(ABOUT)
    assert len(tracker.client.get_metric_history(run.info.run_id, "loss")) == len(ROWS)


def test_other_data_is_another_sweep(workspace: Path, params: Params) -> None:
    first = tracking.Tracker(params).sweep_run.info.run_id
    assert tracking.Tracker(params).sweep_run.info.run_id == first
    (workspace / "out/data/sft_train.jsonl").write_text('{"text": "y"}\n')
    assert tracking.Tracker(params).sweep_run.info.run_id != first


def test_a_server_that_is_away_stops_nothing_and_shows_no_secret(
    workspace: Path,
    params: Params,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://name:hunter2@127.0.0.1:9")
    train(params)
    said = capsys.readouterr().err
    assert said.count("warning: MLflow at") == 1
    assert "hunter2" not in said
    away = pytest.raises(UserError, match=r"MLflow at http://…@127\.0\.0\.1:9")
    with away as caught, tracking.reachable():
        tracking.client().search_experiments()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))  # as Prefect logs it


def test_tracking_again_with_a_server_that_is_away_is_one_message(
    workspace: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://name:hunter2@127.0.0.1:9")
    monkeypatch.setattr(tasks.track, "load_params", lambda: params)
    monkeypatch.setattr(tasks.track, "render", lambda *_: [])
    with pytest.raises(UserError, match=r"MLflow at http://…@127\.0\.0\.1:9") as caught:
        tasks.track.main()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("password", ["hunter2", "hunt/er2", "hunt@er2", "hu//nt@/er2"])
def test_a_registry_whose_database_is_away_is_one_message_without_its_password(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    """MLflow passes on what SQLAlchemy raises, and a driver that is not there."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://name:{password}@127.0.0.1:9/mlflow")
    with (
        pytest.raises(
            UserError, match=r"MLflow at postgresql://…@127\.0\.0\.1:9/mlflow: "
        ) as caught,
        tracking.reachable(),
    ):
        tracking.client().search_experiments()
    assert "er2" not in "".join(traceback.format_exception(caught.value))
    error = OperationalError("SELECT 1", {}, Exception(f"at postgresql://name:{password}@db/x"))
    with pytest.raises(UserError, match="postgresql://…@db/x") as caught, tracking.reachable():
        raise error
    assert "er2" not in str(caught.value)
    error = OperationalError("SELECT 1", {}, Exception(f"at postgresql://db/x?password={password}"))
    with pytest.raises(UserError, match="postgresql://") as caught, tracking.reachable():
        raise error
    assert "er2" not in str(caught.value)
    with pytest.raises(ModuleNotFoundError), tracking.reachable():  # none of the registry's
        raise ModuleNotFoundError("No module named 'vllm'", name="vllm")


def test_a_stage_that_dies_leaves_its_run_marked(workspace: Path, params: Params) -> None:
    with (
        pytest.raises(SystemExit),
        tracking.training_run(params, ABOUT) as log,
    ):
        log.step(ROWS[0])
        raise SystemExit(143)
    tracker = tracking.Tracker(params)
    run = tracker.client.get_run(tracker.arm_run(ABOUT).info.run_id)
    assert run.info.status == "KILLED"
    assert run.data.metrics["loss"] == 1.0
