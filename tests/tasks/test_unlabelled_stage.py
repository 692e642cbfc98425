"""The experiment on unlabelled prompts, stage by stage, on a workspace of seconds."""

from __future__ import annotations

import json
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import tasks.arms
import tasks.ppo
import tasks.unlabelled
import tasks.unlabelled_dpo
import tasks.unlabelled_fresh
import tasks.unlabelled_ppo
import tasks.unlabelled_reward
from betaflow.config import unlabelled_arm
from betaflow.data.labelled import kept_pairs, labelled_prompts
from betaflow.data.tokenise import Limits
from betaflow.errors import UserError
from betaflow.io import read_jsonl, write_jsonl
from betaflow.policy.loading import load_policy, load_reward_model, load_tokenizer, save_model
from betaflow.policy.packing import all_sequences
from betaflow.policy.scorer import Scorer
from betaflow.training import checkpoints, loop
from betaflow.worlds.lexicon import OPINIONS
from betaflow.worlds.sentiment import gold_reward
from tasks._inputs import encode_pairs
from tasks._labels import material, read_pairs
from tasks._main import forget_checkpoints
from tasks.sample import samples

SHARE = 0.4
POINT = {"labelled": SHARE, "seed": 0}
OUT = Path("out/unlabelled")
OTHERS = [f"number {n} is a {word} film" for n, word in zip(range(12), OPINIONS, strict=False)]


@pytest.fixture
def here(
    workspace: Path, tiny: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, untracked: None
) -> Path:
    """The workspace with prompts of every kind and the full reward model, for tiny trainings."""
    params = yaml.safe_load((repository / "params.yaml").read_text())
    params["unlabelled"]["grid"] = {"labelled": [SHARE], "seed": [0]}
    params["dpo"]["training"] |= {
        "batch_of": "pairs", "batch_size": 8, "micro_batch_tokens": 400, "warmup_steps": 0,
    }  # fmt: skip
    params["reward"] |= {"batch_of": "pairs", "batch_size": 8, "warmup_steps": 0}
    params["ppo"]["training"] |= {
        "iterations": 2, "batch_size": 4, "micro_batch_size": 4, "max_new_tokens": 8,
        "critic_warmup": 0,
    }  # fmt: skip
    params["pairs"] |= {"max_new_tokens": 8, "threads": 1}
    params["sample"] |= {
        "engine": "hf", "temperatures": [0.0, 1.0], "seeds": [0, 1], "prompts": 3,
        "out_of_domain": 2, "max_new_tokens": 8,
    }  # fmt: skip
    params["compare"]["bootstrap"] = 100
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    reward = load_reward_model(tiny, new_head_seed=3)
    save_model(reward, load_tokenizer(tiny), workspace / "out/reward")
    labelled = sorted({row["prompt"] for row in read_jsonl(workspace / "out/pairs/train.jsonl")})
    for name, texts in {
        "train": labelled, "unlabelled": OTHERS[:4], "eval": OTHERS[4:8], "ood": OTHERS[8:],
    }.items():  # fmt: skip
        rows = [{"id": f"{name}-{n}", "prompt": text} for n, text in enumerate(texts)]
        write_jsonl(workspace / f"out/data/prompts_{name}.jsonl", rows)
    write_jsonl(workspace / "out/data/sft_eval.jsonl", [{"text": text} for text in OTHERS[:2]])
    monkeypatch.chdir(workspace)
    return workspace


def dpo(method: str, **point: Any) -> Path:
    tasks.unlabelled_dpo.main(Namespace(method=method, **{**POINT, **point}))
    return OUT / f"unlabelled-{method}-f{SHARE}-s0"


def gold_of(row: dict[str, Any], side: str) -> float:
    return gold_reward(row["prompt"] + row[side])


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_the_whole_experiment(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = read_jsonl("out/pairs/train.jsonl")
    places, kept = kept_pairs(pairs, SHARE)
    tasks.unlabelled_fresh.main(Namespace(seed=0))
    fresh = read_jsonl(OUT / "unlabelled-fresh-s0/pairs.jsonl")
    assert {row["prompt"] for row in fresh} == {row["prompt"] for row in pairs} | set(OTHERS[:4])
    assert not [key for row in fresh for key in row if key.endswith("_reward")]

    tasks.unlabelled_reward.main(Namespace(**POINT))
    reward = OUT / f"unlabelled-reward-f{SHARE}-s0"
    assert summary(reward)["steps"] == round(len(pairs) * 2 / 8)  # as on all pairs

    new = [row for row in fresh if row["prompt"] not in kept]
    assert new
    for method in tasks.unlabelled_dpo.METHODS:
        about = summary(dpo(method))
        learned_from = len(places) + (0 if method == "dpo" else len(new))
        assert about["steps"] == round(len(pairs) / 8)
        assert about["settings"]["training"]["epochs"] == pytest.approx(len(pairs) / learned_from)
    of = {m: OUT / f"unlabelled-{m}-f{SHARE}-s0" for m in [*tasks.unlabelled_dpo.METHODS, "ppo"]}
    assert not (of["dpo"] / "labels.parquet").exists()
    labels = {m: pd.read_parquet(of[m] / "labels.parquet") for m in of if m.startswith("dpo_")}
    for table in labels.values():
        assert table["id"].tolist() == [row["id"] for row in new]
        assert (table["margin"] >= 0).all()
        gold = [gold_of(row, "chosen") - gold_of(row, "rejected") for row in new]
        assert table["gold_margin"].abs().tolist() == pytest.approx([abs(gap) for gap in gold])
    first, second = labels.values()
    assert first["margin"].tolist() != second["margin"].tolist()
    # The implicit reward's margin by hand: beta times the log-ratio over the reference.
    arm = unlabelled_arm(tasks.unlabelled.load_params(), "dpo_implicit", SHARE, 0)
    assert arm.beta is not None and arm.beta != 1
    table = pd.read_parquet(OUT / "unlabelled-fresh-s0/reference.parquet").set_index("id")
    tokenizer = load_tokenizer("out/sft")
    policy = Scorer(load_policy(of["dpo"]), tokenizer.pad_token_id)
    sides = encode_pairs(tokenizer, new, Limits("drop", 64, 96))
    ratios = [
        all_sequences(policy, side, budget=500, precision="float32").double().numpy()
        - table.loc[[row["id"] for row in new], f"{name}_logps"].to_numpy()
        for name, side in zip(("chosen", "rejected"), sides, strict=True)
    ]
    expected = arm.beta * abs(ratios[0] - ratios[1])
    assert second["margin"].tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-5)

    started = []
    original = tasks.ppo.load_reward_model
    monkeypatch.setattr(
        tasks.ppo, "load_reward_model",
        lambda path, **how: started.append(path) or original(path, **how),
    )  # fmt: skip
    tasks.unlabelled_ppo.main(Namespace(**POINT))
    assert set(started) == {reward}

    for folder in of.values():
        drawn = pd.read_parquet(folder / "samples.parquet")
        assert drawn.groupby(["domain", "temperature"]).size().to_dict() == {
            ("in", 0.0): 3, ("in", 1.0): 6, ("out", 0.0): 2, ("out", 1.0): 4,
        }  # fmt: skip
        assert drawn["gold_reward"].notna().all()
        assert (drawn.loc[drawn["temperature"] == 1.0, "kl"] > 0).all()
        about = summary(folder)
        assert (about["arm"], about["labelled"]) == (folder.name, SHARE)
        # Until DVC has recorded it: the stage after it removes them.
        assert checkpoints.newest(folder.name) is not None

    tasks.arms.main()
    assert {path.name for path in OUT.iterdir()} == {
        "arms.json", "unlabelled-fresh-s0", reward.name, *(folder.name for folder in of.values())
    }  # fmt: skip
    Path("out/samples").mkdir(exist_ok=True)
    params = tasks.unlabelled.load_params()
    samples(params, "sft", "out/sft").to_parquet("out/samples/sft.parquet")
    tasks.unlabelled.main()
    document = json.loads(Path("out/unlabelled-report/unlabelled.json").read_text())
    assert [row["method"] for row in document["rows"]] == [m for m in of for _ in range(2)]
    assert Path("out/unlabelled-report/unlabelled.png").exists()


@pytest.mark.parametrize("share", [SHARE, 1.0])
def test_what_stops_training_is_of_the_share_and_of_prompts_that_are_not_scored(
    here: Path, share: float
) -> None:
    pairs = read_jsonl("out/pairs/eval.jsonl")
    texts = list(dict.fromkeys(row["prompt"] for row in pairs))
    scored = texts[:3]  # as many as `sample.prompts`
    rows = [{"id": f"eval-{n}", "prompt": text} for n, text in enumerate(texts)]
    write_jsonl("out/data/prompts_eval.jsonl", rows)
    tasks.unlabelled_reward.main(Namespace(labelled=share, seed=0))
    table = pd.read_parquet(OUT / f"unlabelled-reward-f{share}-s0/held_out.parquet")
    prompts = labelled_prompts(set(texts) - set(scored), share)
    assert prompts and table["id"].tolist() == [r["id"] for r in pairs if r["prompt"] in prompts]

    params = tasks.unlabelled.load_params()
    arm = unlabelled_arm(params, "dpo", share, 0)
    found = read_pairs(params, load_tokenizer("out/sft"), arm, material(arm))
    assert found.held_out.ids == table["id"].tolist()


def test_where_every_held_out_prompt_is_scored_nothing_is_trained(here: Path) -> None:
    texts = {row["prompt"] for row in read_jsonl("out/pairs/eval.jsonl")}
    rows = [{"id": f"eval-{n}", "prompt": text} for n, text in enumerate(sorted(texts))]
    write_jsonl("out/data/prompts_eval.jsonl", rows)
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["sample"]["prompts"] = len(texts)
    Path("params.yaml").write_text(yaml.safe_dump(params))
    for train in (partial(dpo, "dpo"), partial(tasks.unlabelled_reward.main, Namespace(**POINT))):
        with pytest.raises(UserError, match=r"lower sample\.prompts or raise data\.eval_fraction"):
            train()


@pytest.mark.parametrize("method", ["dpo_reward_model", "dpo_implicit"])
def test_without_another_prompt_there_is_nothing_fresh(here: Path, method: str) -> None:
    write_jsonl("out/data/prompts_unlabelled.jsonl", [])
    point = {"labelled": 1.0, "seed": 0}
    tasks.unlabelled_fresh.main(Namespace(seed=0))
    tasks.unlabelled_reward.main(Namespace(**point))
    for name in ("dpo", method):
        tasks.unlabelled_dpo.main(Namespace(method=name, **point))
    first, second = (OUT / f"unlabelled-{name}-f1.0-s0" for name in ("dpo", method))
    assert pd.read_parquet(second / "labels.parquet").empty
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_stage_that_is_killed_goes_on_to_the_same_bytes(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = dpo("dpo")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    original = loop._finite_row

    def stop(label: str, update: Any, step: int, items: Any) -> Any:
        if step == 1:
            raise KeyboardInterrupt
        return original(label, update, step, items)

    forget_checkpoints(folder.name)
    monkeypatch.setattr(loop, "_finite_row", stop)
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["dpo"]["training"]["checkpoint_seconds"] = 1e-6
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(KeyboardInterrupt):
        dpo("dpo")
    assert checkpoints.newest(folder.name) is not None
    monkeypatch.setattr(loop, "_finite_row", original)
    dpo("dpo")
    assert f"{folder.name}: resumed at step 1 of 5" in capsys.readouterr().out
    again = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("model.safetensors", "metrics.jsonl", "samples.parquet"):
        assert again[name] == whole[name], name


def test_an_empty_grid_is_an_empty_document(here: Path) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["unlabelled"]["grid"] = {"labelled": [], "seed": []}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    for name in ("unlabelled-dpo-f0.4-s0", "unlabelled-fresh-s0"):
        (OUT / name).mkdir(parents=True)
    tasks.arms.main()
    assert [path.name for path in OUT.iterdir()] == ["arms.json"]
    tasks.unlabelled.main()
    folder = Path("out/unlabelled-report")
    assert {path.name for path in folder.iterdir()} == {"table.csv", "unlabelled.json"}
    assert json.loads((folder / "unlabelled.json").read_text()) == {
        "arms": [], "figures": {}, "rows": [],
    }  # fmt: skip
    assert len((folder / "table.csv").read_text().splitlines()) == 1
