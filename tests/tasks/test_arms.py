"""The stage `arms`: the folders that `compare` reads hold the sweep's arms and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import tasks.arms


@pytest.fixture
def values(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = yaml.safe_load((repository / "params.yaml").read_text())
    values["dpo"]["grid"] |= {"beta": [0.1], "learning_rate": [0.001]}
    values["ipo"]["grid"] |= {"beta": [0.1], "learning_rate": [0.001]}
    values["unlikelihood"]["grid"] |= {"alpha": [0, 0.5], "learning_rate": [0.001]}
    values["ppo"]["grid"] |= {"beta": [0.1]}
    values["optimum"]["samples"] = 30
    values["best_of_n"]["grid"] |= {"scorer": ["gold"], "n": [4]}
    return values


def run(values: dict[str, Any]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(values))
    tasks.arms.main()


def touch(*paths: str) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()


def test_what_is_not_in_the_sweep_goes_and_the_rest_stays(values: dict[str, Any]) -> None:
    kept = [
        "out/dpo/dpo-b0.1-lr0.001-s0/model",
        "out/ipo/ipo-b0.1-lr0.001-s0/model",
        "out/unlikelihood/unlikelihood-a0-lr0.001-s0/model",
        "out/unlikelihood/unlikelihood-a0.5-lr0.001-s0/model",
        "out/ppo/ppo-b0.1-kl0-lr0.0005-s0/model",
        "out/samples/sft.parquet",
        "out/samples/ipo-b0.1-lr0.001-s0.parquet",
        "out/samples/best_of_n-gold-n4.parquet",
        "out/benchmark/unlikelihood-a0-lr0.001-s0.json",
    ]
    gone = [
        "out/dpo/slic-b0.1-lr0.001-s0/model",
        "out/unlikelihood/unlikelihood-a1-lr0.001-s0/model",
        "out/ppo/ppo-b0.1-lr0.0005-s0/model",
        "out/ppo/ppo-b0.1-kl6-lr0.0005-s0/model",
        "out/samples/best_of_n-reward_model-n4.parquet",
        "out/benchmark/best_of_n-gold-n4.json",
    ]
    touch(*kept, *gone)
    run(values)
    assert [path for path in kept if not Path(path).exists()] == []
    assert [path for path in gone if Path(path).exists()] == []
    listed = [row["name"] for row in json.loads(Path("out/arms.json").read_text())]
    assert len(listed) == 1 + 2 + 2 + 1 + 1


def test_the_folders_of_ipo_and_unlikelihood_are_there_without_an_arm(
    values: dict[str, Any],
) -> None:
    run(values)
    assert [row["method"] for row in json.loads(Path("out/ipo/arms.json").read_text())] == ["ipo"]
    own = json.loads(Path("out/unlikelihood/arms.json").read_text())
    assert [row["method"] for row in own] == ["preferred_ft", "unlikelihood"]
    touch("out/unlikelihood/unlikelihood-a0-lr0.001-s0/model")
    values["unlikelihood"]["grid"]["alpha"] = []
    values["ipo"]["grid"]["seed"] = []
    run(values)
    assert json.loads(Path("out/ipo/arms.json").read_text()) == []
    assert json.loads(Path("out/unlikelihood/arms.json").read_text()) == []
    assert [path.name for path in Path("out/unlikelihood").iterdir()] == ["arms.json"]
