"""The stage `judge`, by each kind of judge: what is asked, written, and not paid for twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from endpoints import KEY, VARIABLE, Reply, said, serve, settings, texts, verdict

import tasks.judge
from betaflow.config import Arm
from betaflow.data.tokenise import encode
from betaflow.errors import UserError
from betaflow.evaluation.controls import CONSTANT, constant_answers
from betaflow.io import read_json, write_json
from betaflow.policy.loading import load_reward_model, load_tokenizer, save_model
from betaflow.policy.rewards import all_sequence_scores
from betaflow.worlds.sentiment import gold_reward

DPO = Arm(method="dpo", beta=0.1, learning_rate=0.001, seed=0)
PPO = Arm(method="ppo", beta=0.1, target_kl=0, learning_rate=0.001, seed=0)
ARMS = [Arm(method="sft"), DPO, PPO]
# The prompt's number and what it gets, control by control.
CONSTANTS = [(n, given[n % len(given)]) for given in constant_answers().values() for n in range(2)]
WORDS = ["awful", "bad", "dull", "fine", "good", "superb"]


def samples(arm: Arm) -> pd.DataFrame:
    """Two prompts and one of the other domain, two temperatures, two seeds."""
    rows = [
        {
            "prompt_id": f"{domain}{n}",
            "domain": domain,
            "prompt": f"film {n} was",
            "temperature": temperature,
            "seed": seed,
            "completion": f" {WORDS[n + seed + 3 * (arm.method == 'dpo')]}" + "." * seed,
            "reward_model": float(n + seed),
            "gold_reward": float(n - seed),
        }
        for domain, count in (("in", 2), ("out", 1))
        for n in range(count)
        for temperature in (0.5, 1.0)
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def here(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A workspace of three arms; its params, to be changed and written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    write_json("out/arms.json", [{"name": arm.name, **arm.model_dump()} for arm in ARMS])
    Path("out/samples").mkdir()
    for arm in ARMS:
        samples(arm).to_parquet(f"out/samples/{arm.name}.parquet")
    values: dict[str, Any] = yaml.safe_load((repository / "params.yaml").read_text())
    values["compare"]["bootstrap"] = 100
    return values


def run(values: dict[str, Any]) -> tuple[pd.DataFrame, dict[str, Any]]:
    Path("params.yaml").write_text(yaml.safe_dump(values))
    tasks.judge.main()
    return pd.read_parquet("out/judgements/verdicts.parquet"), read_json(
        "out/judgements/summary.json"
    )


def asking(values: dict[str, Any], url: str, **changes: Any) -> dict[str, Any]:
    prices = {"prompt_price": 1.0, "completion_price": 2.0}
    llm = settings(url, model="m", key_variable=VARIABLE, retries=1, **prices, **changes)
    asked = {"judge": "llm", "llm": llm.model_dump()}
    return values | {"compare": values["compare"] | asked}


def by_word(body: dict[str, Any]) -> Reply:
    """Prefers the warmer word; constant answers have none."""
    _, *shown = texts(body["messages"][0]["content"])
    warmth = [max((WORDS.index(w) for w in WORDS if w in text), default=-1) for text in shown]
    return verdict("A" if warmth[0] >= warmth[1] else "B")


def test_gold_is_asked_about_the_controls_alone(
    here: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        "betaflow.worlds.sentiment.gold_reward", lambda text: seen.append(text) or -9.0
    )
    verdicts, summary = run(here)
    assert verdicts.empty
    assert {"arm", "baseline", "prompt_id", "temperature", "seed", "preference"} < set(verdicts)
    assert set(seen) == {f"film {n} was{text}" for n, text in CONSTANTS}
    rows = {row["control"]: row for row in summary["controls"]["rows"]}
    assert rows["null"]["estimate"] == rows["injection"]["estimate"] == 0.0
    assert (rows["self"]["estimate"], rows["self"]["pairs"]) == (1.0, 2)  # seed 0 has more gold
    assert summary["judge"] == "gold"
    assert (summary["usage"], summary["model"], summary["order"]) == (None, None, None)
    assert not Path(".local").exists()


def test_the_default_judge_in_the_embedded_world_is_not_fooled(here: dict[str, Any]) -> None:
    """A text that says nothing has the reward of its prompt, whatever it claims."""
    for n, text in CONSTANTS:
        prompt = f"film {n} was"
        assert gold_reward(prompt + text) == pytest.approx(gold_reward(prompt), abs=0.3)
    run(here)


def test_the_reward_model_scores_what_no_arm_said(
    here: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny, "out/sft")
    model, tokenizer = load_reward_model(tiny, new_head_seed=1), load_tokenizer(tiny)
    save_model(model, tokenizer, tmp_path / "out/reward")
    here["compare"]["judge"], here["sample"]["threads"] = "reward_model", 1
    _, summary = run(here)
    texts_of = [(f"film {n} was", text) for n, text in CONSTANTS]
    whole = [encode(tokenizer, *pair) for pair in texts_of]
    cut = [one._replace(completion=one.completion[:64]) for one in whole]
    scores = all_sequence_scores(
        model.eval(), cut, pad=tokenizer.pad_token_id, batch_size=8, precision="float32"
    ).numpy()
    wins = (scores.reshape(2, 2) > np.array([0.0, 1.0])).mean(axis=1)  # the samples' own scores
    rows = {row["control"]: row for row in summary["controls"]["rows"]}
    assert [rows[name]["estimate"] for name in CONSTANT] == wins.tolist()


def test_a_language_model_is_asked_about_every_pair_once(
    here: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    with serve(by_word) as server:
        verdicts, summary = run(asking(here, server.url))
        asked = len(server.requests)
        questions = "".join(body["messages"][0]["content"] for body in server.requests)
        for letter in "AB":  # the verdict that `injection` shows is one of the template's
            assert f"\nMore positive: {letter}\n" in questions
        told = capsys.readouterr().out
        before = {path: path.read_bytes() for path in Path("out/judgements").iterdir()}
        run(asking(here, server.url, concurrency=2))
        assert len(server.requests) == asked
    assert {path: path.read_bytes() for path in Path("out/judgements").iterdir()} == before
    assert len(verdicts) == 3 * 2 * 2 * 2 * 2  # arms, baselines, prompts, temperatures, seeds
    by_pair = verdicts.groupby(["arm", "baseline"])["preference"]
    assert by_pair.get_group((DPO.name, "sft")).tolist() == [1.0] * 8
    assert by_pair.get_group(("sft", "sft")).tolist() == [0.5] * 8
    assert by_pair.get_group((DPO.name, "ppo")).tolist() == [1.0] * 8
    assert by_pair.get_group((PPO.name, "sft")).tolist() == [0.5] * 8  # the same completions
    assert summary["missing"] == {}
    assert summary["order"]["consistency"] == 1.0
    assert summary["controls"]["failed"] == []
    # 8 different pairs of DPO's are 4 by their text; controls: 2 x 2 constant, 2 draws, 2 orders.
    assert asked == summary["usage"]["answers"] == 2 * (4 + 4 + 2)
    assert summary["usage"]["spend"] == pytest.approx(asked * (100 * 1.0 + 10 * 2.0) / 1e6)
    assert f"judge: {asked} answers, 2,000 + 200 tokens, spend 0.0024" in told
    assert "of them now: 0 answers, 0 + 0 tokens" in capsys.readouterr().out
    kept = "".join(path.read_text() for path in Path(".local").rglob("*.json"))
    everything = kept + str(summary) + told + verdicts.to_csv() + Path("params.yaml").read_text()
    assert KEY not in everything


def test_what_a_stage_that_stops_took_is_told(
    here: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    seen: list[str] = []

    def soon_out_of_credit(body: dict[str, Any]) -> Reply:
        seen.append("")
        return by_word(body) if len(seen) <= 3 else Reply(401, b"{}")

    with serve(soon_out_of_credit) as server, pytest.raises(UserError, match="HTTP 401"):
        run(asking(here, server.url, concurrency=1))
    assert "judge: 3 answers, 300 + 30 tokens, spend 0.00036" in capsys.readouterr().out


def test_a_model_that_says_no_verdict_is_said_and_leaves_nothing(
    here: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)

    def mute(_: dict[str, Any]) -> Reply:
        return said("Both have their merits.")

    monkeypatch.setattr(
        tasks.judge, "compared_pairs", lambda *_: tasks.judge.no_pairs()
    )  # identical completions are ties without being asked about
    with serve(mute) as server, pytest.raises(UserError, match=r"no verdict on any .*malformed"):
        run(asking(here, server.url))
    assert not Path("out/judgements").exists()


def test_verdicts_that_could_not_be_had_are_missing(
    here: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)

    def filtered(body: dict[str, Any]) -> Reply:
        sensitive = "superb" in body["messages"][0]["content"]
        return Reply(400, b'{"error": {"message": "filtered"}}') if sensitive else by_word(body)

    with serve(filtered) as server:
        verdicts, summary = run(asking(here, server.url))
    lost = verdicts["preference"].isna()
    assert set(verdicts.loc[lost, "missing"]) == {"HTTP 400"}
    assert set(verdicts.loc[lost, "arm"]) == {DPO.name}
    assert summary["missing"] == {"HTTP 400": int(lost.sum())} and lost.sum() == 4
    assert summary["controls"]["failed"] == []
