"""The PPO stage: what each method maximises, where the models start, and the curve it leaves."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

import tasks.dpo
import tasks.ppo
from betaflow.data.tokenise import encode_prompt
from betaflow.errors import UserError
from betaflow.io import write_jsonl
from betaflow.policy.loading import load_reward_model, load_tokenizer, save_model
from betaflow.sampling.hf_engine import HFEngine
from betaflow.worlds.lexicon import OPINIONS
from betaflow.worlds.sentiment import gold_reward
from tasks._curve import collect

POINT = {"beta": 0.1, "target_kl": 0, "learning_rate": 0.001, "seed": 0}
PROMPTS = [f"number {n} is a {word} film" for n, word in enumerate(sorted(OPINIONS)[:12])]


@pytest.fixture
def here(
    workspace: Path, tiny: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, untracked: None
) -> Path:
    """The workspace with a reward model and prompts, and three iterations to make."""
    params = yaml.safe_load((repository / "params.yaml").read_text())
    params["ppo"]["training"] |= {
        "iterations": 3, "batch_size": 8, "micro_batch_size": 8, "max_new_tokens": 12,
        "critic_warmup": 1, "threads": 1,
    }  # fmt: skip
    params["dpo"]["training"] |= {
        "batch_of": "pairs", "batch_size": 8, "micro_batch_tokens": 400, "threads": 1,
    }  # fmt: skip
    params["curve"] = {"points": 2, "prompts": 3, "draws": 2}
    params["sample"]["max_new_tokens"] = 12
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    save_model(
        load_reward_model(tiny, new_head_seed=3), load_tokenizer(tiny), workspace / "out/reward"
    )
    rows = [{"id": f"p{n}", "prompt": text} for n, text in enumerate(PROMPTS)]
    write_jsonl(workspace / "out/data/prompts_train.jsonl", rows[:6])
    write_jsonl(workspace / "out/data/prompts_unlabelled.jsonl", rows[6:9])
    write_jsonl(workspace / "out/data/prompts_eval.jsonl", rows[9:])
    monkeypatch.chdir(workspace)
    return workspace


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["ppo", "ppo_gt"])
def test_the_method_decides_what_is_maximised(
    here: Path, method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scored: dict[str, Any] = {}
    original = tasks.ppo.train_ppo

    def train(models: Any, reward: Any, *rest: Any, **how: Any) -> Any:
        def score(episodes: Any) -> torch.Tensor:
            scored["episodes"], scored["scores"] = episodes, reward.score(episodes)
            return scored["scores"]  # type: ignore[no-any-return]

        saved = load_reward_model("out/reward").score.weight
        assert torch.equal(models.critic.score.weight, saved)  # it starts as the reward model
        return original(models, reward._replace(score=score), *rest, **how)

    monkeypatch.setattr(tasks.ppo, "train_ppo", train)
    tasks.ppo.main(argparse.Namespace(method=method, **POINT))
    tokenizer = load_tokenizer("out/sft")
    texts = [
        tokenizer.decode(e.prompt + e.completion, skip_special_tokens=True)
        for e in scored["episodes"]
    ]
    gold = [gold_reward(text) for text in texts]
    assert any(gold)
    assert (scored["scores"].tolist() == pytest.approx(gold, abs=1e-6)) == (method == "ppo_gt")
    folder = here / f"out/ppo/{method}-b0.1-kl0-lr0.001-s0"
    rows = rows_of(folder)
    assert len(rows) == 3
    about = json.loads((folder / "summary.json").read_text())
    assert about["method"] == method
    assert about["train_flops"] == pytest.approx(sum(row["flops"] for row in rows))
    timings = json.loads((here / f"out/.local/timings/{folder.name}.json").read_text())
    assert set(timings["phases"]) == {"rollout", "scoring", "update"}
    assert "seconds an iteration: rollout" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["ppo", "ppo_gt"])
def test_an_arm_is_trained_by_its_own_point_and_by_the_scales_of_what_it_maximises(
    here: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Exception):
        pass

    seen: dict[str, Any] = {}
    scales: list[Any] = []
    original = tasks.ppo.reference_scale

    def scaled(*given: Any, **how: Any) -> Any:
        scales.append(original(*given, **how))
        return scales[-1]

    def train(
        _: Any, reward: Any, critic_scale: Any, engine: Any, prompts: Any, *rest: Any, **how: Any
    ) -> Any:
        seen.update(how, reward=reward, critic_scale=critic_scale, prompts=prompts)
        raise Seen

    monkeypatch.setattr(tasks.ppo, "reference_scale", scaled)
    monkeypatch.setattr(tasks.ppo, "train_ppo", train)
    point = {"beta": 0.3, "target_kl": 2.5, "learning_rate": 0.002, "seed": 7}
    with pytest.raises(Seen):
        tasks.ppo.main(argparse.Namespace(method=method, **point))
    given = {name: seen[name] for name in ("beta", "target_kl", "peak_rate", "seed")}
    assert given == {"beta": 0.3, "target_kl": 2.5, "peak_rate": 0.002, "seed": 7}
    # The critic begins as the reward model, whatever is maximised.
    assert seen["critic_scale"] == scales[0]
    assert seen["reward"].scale == scales[-1]
    assert len(scales) == (1 if method == "ppo" else 2)
    assert scales[0] != scales[-1] or method == "ppo"
    tokenizer = load_tokenizer("out/sft")  # it learns on labelled prompts and on the others
    assert seen["prompts"] == [encode_prompt(tokenizer, text) for text in PROMPTS[:9]]
    # The gold reward runs no model.
    assert (seen["reward"].forward_flops > 0) == (method == "ppo")


def test_an_engine_with_weights_of_its_own_rolls_out_the_policy_s(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which are given before each rollout: the rows are those of drawing from the policy itself."""

    class Apart(HFEngine):
        def load_weights(self, model: torch.nn.Module) -> None:
            self.model.load_state_dict(model.state_dict())

    monkeypatch.setattr(
        tasks.ppo, "open_engine", lambda _, path, **how: Apart.load(path, batch_size=8)
    )
    found = []
    for engine in ("hf", "vllm"):
        params = yaml.safe_load(Path("params.yaml").read_text())
        params["ppo"]["training"]["engine"] = engine
        Path("params.yaml").write_text(yaml.safe_dump(params))
        tasks.ppo.main(argparse.Namespace(method="ppo", **POINT))
        found.append(rows_of(here / "out/ppo/ppo-b0.1-kl0-lr0.001-s0"))
    timings = json.loads((here / "out/.local/timings/ppo-b0.1-kl0-lr0.001-s0.json").read_text())
    assert "sync" in timings["phases"]
    assert found[0] == found[1]


@pytest.mark.parametrize("method", ["ppo", "dpo"])
def test_the_curve_s_draws_lie_beside_the_model(here: Path, method: str) -> None:
    if method == "ppo":
        tasks.ppo.main(argparse.Namespace(method="ppo", **POINT))
        folder, looks = here / "out/ppo/ppo-b0.1-kl0-lr0.001-s0", [2, 3]
    else:
        point = {key: POINT[key] for key in ("beta", "learning_rate", "seed")}
        tasks.dpo.main(argparse.Namespace(method="dpo", **point))
        folder, looks = here / "out/dpo/dpo-b0.1-lr0.001-s0", [3, 5]
    curve = pd.read_parquet(folder / "curve.parquet")
    assert sorted(set(curve["step"])) == looks
    assert curve.groupby("step").size().tolist() == [6, 6]
    assert set(curve["prompt_id"]) == {"p9", "p10", "p11"}
    for row in rows_of(folder):
        here_too = row["step"] + 1 in looks
        assert ("curve/kl" in row) == here_too
        if here_too:
            own = curve[curve["step"] == row["step"] + 1]
            assert row["curve/gold_reward"] == pytest.approx(own["gold_reward"].mean())
            assert row["curve/kl"] == pytest.approx(own["kl"].mean())


def test_a_lost_look_is_said(here: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        collect("nowhere", [{"step": 4, "curve/kl": 0.0}])
    assert collect("nowhere", [{"step": 4}]) is None
