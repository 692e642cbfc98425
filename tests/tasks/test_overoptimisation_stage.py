"""The stage `overoptimisation`: the start is looked at as the arms were, and every draw scored."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import tasks.overoptimisation
from betaflow.config import Arm, load_params
from betaflow.evaluation.curve import probe
from betaflow.io import write_json, write_jsonl
from betaflow.policy.loading import load_policy, load_reward_model, load_tokenizer, save_model
from betaflow.report.frontier_files import read_curves
from betaflow.sampling.hf_engine import HFEngine
from betaflow.worlds.second_score import second_score
from betaflow.worlds.sentiment import gold_reward
from tasks._curve import held_out_probe
from tasks._looks import scored_looks

PROMPTS = ["the film", "i saw a movie", "this", "the plot was", "an actor"]
ARMS = [
    Arm(method="dpo", beta=0.1, learning_rate=0.001, seed=0),
    Arm(method="ppo_gt", beta=0.1, target_kl=0, learning_rate=0.001, seed=0),
]
FOLDER = Path("out/overoptimisation")


@pytest.fixture
def here(tiny: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a reference, a reward model, and arms that nobody looked at."""
    shutil.copytree(tiny, tmp_path / "out/sft")
    reward = load_reward_model(tiny, new_head_seed=1)
    save_model(reward, load_tokenizer(tiny), tmp_path / "out/reward")
    rows = [{"id": f"p{n}", "prompt": text} for n, text in enumerate(PROMPTS)]
    write_jsonl(tmp_path / "out/data/prompts_eval.jsonl", rows)
    write_json(tmp_path / "out/arms.json", [{"name": a.name, **a.model_dump()} for a in ARMS])
    values = yaml.safe_load((repository / "params.yaml").read_text())
    values["curve"] = {"points": 2, "prompts": 4, "draws": 2}
    values["sample"] |= {"max_new_tokens": 6, "threads": 1}
    values["compare"]["bootstrap"] = 100
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    draws = {"prompt_id": [], "draw": [], "gold_reward": [], "reward_model": []}
    (tmp_path / "out/optimum").mkdir()
    pd.DataFrame(draws).to_parquet(tmp_path / "out/optimum/draws.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def look_at_arms() -> None:
    """`curve.parquet` of each arm: the reference, further and further astray."""
    asked = held_out_probe(load_params(), load_tokenizer("out/sft"))
    reference = load_policy("out/sft").eval()
    for arm in ARMS:
        policy, tables = load_policy("out/sft").eval(), []
        for step in (3, 6):
            with torch.no_grad():
                policy.get_input_embeddings().weight.mul_(1.1)
            engine = HFEngine(policy, load_tokenizer("out/sft"), 8)
            tables.append(probe(policy, reference, engine, asked).assign(step=step))
        arm.model_dir.mkdir(parents=True)
        pd.concat(tables, ignore_index=True).to_parquet(arm.model_dir / "curve.parquet")


def test_every_draw_is_scored_and_the_start_is_the_reference(here: Path) -> None:
    look_at_arms()
    looks = scored_looks(load_params(), read_curves(ARMS))
    assert len(looks.start) == 8
    assert (looks.start["kl"] == 0).all()
    assert (looks.start["log_ratio"] == 0).all()
    texts = [PROMPTS[int(r.prompt_id[1:])] + r.completion for r in looks.start.itertuples()]
    assert looks.start["gold_reward"].tolist() == [gold_reward(text) for text in texts]
    second = second_score(0)
    np.testing.assert_array_equal(looks.start["second_gold"], second.score(texts))
    assert looks.second == {k: v for k, v in second._asdict().items() if k != "score"}
    assert list(looks.curves) == [arm.name for arm in ARMS]
    table = looks.curves[ARMS[0].name]
    assert table["reward_model"].nunique() > 8
    assert not table["second_gold"].isna().any()

    tasks.overoptimisation.main()
    document = json.loads((FOLDER / "overoptimisation.json").read_text())
    assert [group["judge"] for group in document["groups"]] == ["gold_reward", "second_gold"]
    gains = looks.start.groupby("prompt_id")["reward_model"].mean()
    ends = table[table["step"] == 6].groupby("prompt_id")["reward_model"].mean()
    last = document["groups"][0]["curve"][-1]
    assert last["reward_model_gain"] == pytest.approx((ends - gains).mean(), abs=1e-5)
    assert (FOLDER / "second_gold.png").is_file()


def test_outside_the_world_there_is_no_gold(here: Path) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["data"] |= {"source": "jsonl", "path": "data/pairs.jsonl"}
    values["benchmark"]["tasks"], values["compare"]["judge"] = [], "reward_model"
    values["pairs"]["source"] = "human"
    values["best_of_n"]["grid"]["scorer"] = ["reward_model"]
    Path("params.yaml").write_text(yaml.safe_dump(values))
    look_at_arms()
    tasks.overoptimisation.main()
    document = json.loads((FOLDER / "overoptimisation.json").read_text())
    assert document["second_gold"] is document["start"]["gold_reward"] is None
    assert document["start"]["reward_model"] is not None
    assert "embedded world" in document["groups"][0]["reason"]
    assert not (FOLDER / "second_gold.png").exists()


def test_without_looks_nothing_is_loaded(here: Path, repository: Path) -> None:
    shutil.rmtree("out/sft")
    code = 'import sys; sys.modules["torch"] = None; import tasks.overoptimisation as t; t.main()'
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]
    assert json.loads((FOLDER / "overoptimisation.json").read_text())["groups"] == []
    names = {"overoptimisation.json", "looks.csv", "fits.csv"}
    assert {path.name for path in FOLDER.iterdir()} == names
