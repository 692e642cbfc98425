"""Command lines of the arms' stages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from betaflow.config import Params
from betaflow.errors import UserError
from tasks._arguments import grid_arguments, model_argument


def test_a_point_of_a_grid_is_read_as_dvc_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--method ipo --beta 1 --target-kl 0.5 --learning-rate 1e-06 --seed 3"
    names = ["method", "beta", "target_kl", "learning_rate", "seed"]
    monkeypatch.setattr("sys.argv", ["stage", *words.split()])
    given = grid_arguments("about", names, ["dpo", "ipo"])
    expected = {"method": "ipo", "beta": 1, "target_kl": 0.5, "learning_rate": 1e-6, "seed": 3}
    assert vars(given) == expected
    assert isinstance(given.beta, int)
    with pytest.raises(SystemExit):  # no such method
        grid_arguments("about", names, ["dpo"])
    with pytest.raises(SystemExit):  # a word too many
        grid_arguments("about", names[:2])


def test_only_a_model_can_be_sampled_and_benchmarked(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = params.best_of_n.grid.model_copy(update={"n": [4]})
    section = params.best_of_n.model_copy(update={"grid": grid})
    params = params.model_copy(update={"best_of_n": section})
    monkeypatch.setattr("sys.argv", ["stage", "--arm", "sft"])
    assert model_argument("about", params).method == "sft"
    for name in ("best_of_n-gold-n4", "dpo-b7-lr0.001-s0"):
        monkeypatch.setattr("sys.argv", ["stage", "--arm", name])
        with pytest.raises(UserError, match=f"no arm '{name}' with a model"):
            model_argument("about", params)


def test_help_of_a_stage_without_arguments_tells_about_it_and_runs_nothing(
    tmp_path: Path, repository: Path
) -> None:
    left = tmp_path / "out/dpo/dpo-of-an-older-sweep"
    left.mkdir(parents=True)
    (tmp_path / "params.yaml").symlink_to(repository / "params.yaml")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tasks.arms", *words]
        environment = os.environ | {"PYTHONPATH": str(repository)}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    told = run("--help")
    assert told.returncode == 0
    assert "Stage `arms`" in told.stdout
    assert run("--nonsense").returncode == 2
    assert left.exists()
    assert run().returncode == 0
    assert not left.exists()
