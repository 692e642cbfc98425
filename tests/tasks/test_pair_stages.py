"""The stages that train on preference pairs: each method with its own loss, from one engine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from tokenizers import processors

import tasks.dpo
import tasks.ipo
import tasks.pairs
import tasks.unlikelihood
from betaflow.config import load_params
from betaflow.data.tokenise import Encoded
from betaflow.io import write_jsonl
from betaflow.policy.scratch import train_tokenizer

POINT = {"learning_rate": 0.001, "seed": 0}
AS_SET = {"label_smoothing": 0.1, "length_normalised": True}
AS_PUBLISHED = {"label_smoothing": 0.0, "length_normalised": False}


@pytest.fixture
def here(
    workspace: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, untracked: None
) -> Path:
    """The workspace, whose params ask for five steps of a DPO with options of its own."""
    params = yaml.safe_load((repository / "params.yaml").read_text())
    params["dpo"]["training"] |= {
        "batch_of": "pairs", "batch_size": 8, "micro_batch_tokens": 400, "warmup_steps": 0,
        "threads": 1,
        **AS_SET,
    }  # fmt: skip
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(workspace)
    return workspace


def result(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    assert (folder / "model.safetensors").exists()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows, json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(
    ("method", "loss", "first"),
    [("dpo", "sigmoid", 0.693147), ("ipo", "ipo", 1.0), ("slic", "hinge", 1.0)],
)
def test_the_paper_s_other_losses_are_arms_of_dpo(
    here: Path, method: str, loss: str, first: float
) -> None:
    if method == "ipo":
        stage = "ipo"
        tasks.ipo.main(argparse.Namespace(beta=0.5, **POINT))
    else:
        stage = "dpo"
        tasks.dpo.main(argparse.Namespace(method=method, beta=0.5, **POINT))
    rows, about = result(here / f"out/{stage}/{method}-b0.5-lr0.001-s0")
    assert len(rows) == 5
    assert rows[0]["loss"] == pytest.approx(first, abs=1e-3)  # IPO: (1 / 2 beta)^2
    assert (about["method"], about["beta"], about["alpha"]) == (method, 0.5, None)
    expected = {"loss": loss, **(AS_SET if method == "dpo" else AS_PUBLISHED)}
    used = about["settings"]["training"]
    assert {name: used[name] for name in expected} == expected


def test_an_engine_is_compared_on_texts_after_a_token_of_theirs(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = train_tokenizer(["lovely film"] * 9, 300)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # no BOS
    write_jsonl(Path("out/data/sft_eval.jsonl"), [{"text": "lovely"}, {"text": "lovely film"}])
    compared: list[Encoded] = []
    monkeypatch.setattr(tasks.pairs, "open_engine", lambda *_, **__: None)
    monkeypatch.setattr(tasks.pairs, "check_engine", lambda *args, **_: compared.extend(args[2]))
    tasks.pairs.reference_engine(load_params(), tokenizer)
    (one,) = compared
    assert one == ([tokenizer.convert_tokens_to_ids("lovely")], tokenizer(" film").input_ids)


@pytest.mark.parametrize("beta", [0.2, 0.9])
def test_the_implicit_reward_is_beta_times_the_log_ratio(here: Path, beta: float) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["dpo"]["training"] |= {"length_normalised": False, "label_smoothing": 0.0}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    tasks.dpo.main(argparse.Namespace(method="dpo", beta=beta, **POINT))
    _, about = result(here / f"out/dpo/dpo-b{beta}-lr0.001-s0")
    reference = pd.read_parquet("out/reference/eval.parquet")
    for side in ("chosen", "rejected"):
        moved = about["metrics"][f"eval/logps/{side}"] - reference[f"{side}_logps"].mean()
        assert abs(moved) > 0.01
        expected = pytest.approx(beta * moved, rel=1e-3, abs=1e-5)
        assert about["metrics"][f"eval/rewards/{side}"] == expected


@pytest.mark.parametrize("value_steps", [0, 1])
def test_online_dpo_draws_its_own_pairs(here: Path, value_steps: int) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    drawn = {
        "steps": 3, "prompts": 4, "draws": 3, "labels": "expected", "max_new_tokens": 12,
        "value_steps": value_steps, "value_rate": 1e-3,
    }  # fmt: skip
    params["dpo"]["online"] = drawn
    Path("params.yaml").write_text(yaml.safe_dump(params))
    tasks.dpo.main(argparse.Namespace(method="online_dpo", beta=0.5, **POINT))
    rows, about = result(here / "out/dpo/online_dpo-b0.5-lr0.001-s0")
    # At the first step on pairs the policy is the reference, or near it after value steps.
    first = rows[value_steps]
    assert first["loss"] == pytest.approx(0.693147, abs=0.01 if value_steps else 1e-3)
    assert first["log_ratio"] == pytest.approx(0, abs=0.1 if value_steps else 1e-4)
    assert [row["step"] for row in rows if "value/kl" in row] == list(range(value_steps))
    assert [row["step"] for row in rows if "loss" in row] == list(range(value_steps, 3))
    assert all(0 < row["sampled_tokens"] <= 4 * 3 * 12 for row in rows)
    assert about["train_flops"] == sum(row["flops"] for row in rows)
    assert about["settings"]["online"] == drawn
    # What is of passes over given pairs is no setting of it.
    assert not {"epochs", "batch_size", "batch_of", "patience"} & set(about["settings"]["training"])
    assert "eval/loss" in about["metrics"]


@pytest.mark.parametrize(("alpha", "method"), [(0, "preferred_ft"), (0.5, "unlikelihood")])
def test_unlikelihood_and_preferred_ft(here: Path, alpha: float, method: str) -> None:
    tasks.unlikelihood.main(argparse.Namespace(alpha=alpha, **POINT))
    rows, about = result(here / f"out/unlikelihood/unlikelihood-a{alpha}-lr0.001-s0")
    assert (about["method"], about["alpha"], about["beta"]) == (method, alpha, None)
    assert about["steps"] == len(rows) == 5
    for row in rows:
        loss = -row["logps/chosen"] + alpha * row["logps/rejected"]
        assert row["loss"] == pytest.approx(loss, rel=1e-5)
    table = pd.read_parquet("out/reference/eval.parquet")
    assert about["metrics"]["eval/logps/chosen"] > table["chosen_logps"].mean() + 1
    # What belongs to DPO's loss is no setting of these.
    assert not {"loss", "label_smoothing", "length_normalised", "margin"} & set(
        about["settings"]["training"]
    )
    assert about["settings"]["training"]["batch_size"] == 8
