"""A language model's verdicts in the comparison: they decide the wins, and gaps stay gaps."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from endpoints import settings

from betaflow.config import Params
from betaflow.errors import UserError
from betaflow.evaluation.controls import control_pairs
from betaflow.evaluation.judges import Judge
from betaflow.io import read_json, write_json
from betaflow.report.build import build, render
from betaflow.report.estimates import judged as verdicts_of
from betaflow.report.estimates import won
from betaflow.report.headline import sentences
from betaflow.report.inputs import read_arms, read_samples
from betaflow.report.interactive import win_rate
from betaflow.report.judge_section import judge_section, judge_sentences
from betaflow.report.judgements import (
    compared_pairs,
    control_samples,
    judgements,
    verdict_table,
    with_verdicts,
)
from betaflow.report.length import length_section
from betaflow.report.table import tidy

Workspace = Callable[..., Params]
DPO = "dpo-b0.1-lr0.001-s0"
USAGE = {
    "answers": 1234,
    "prompt_tokens": 56789,
    "completion_tokens": 4321,
    "unreported": 1,
    "spend": 0.25,
    "models": ["judge-7b"],
}


def by_name(pairs: pd.DataFrame) -> pd.DataFrame:
    """Prefers DPO's completions to all others, and PPO's where they are shown first."""
    rows = []
    for a, b in pairs[["completion_a", "completion_b"]].itertuples(index=False):
        if a == b:
            rows.append((0.5, "", "", ""))
        elif a.startswith(" a ppo"):
            rows.append((0.5, "a", "b", ""))
        else:
            winner = "a" if a.startswith(" a dpo") else "b"
            rows.append((float(winner == "a"), winner, winner, ""))
    return pd.DataFrame(rows, columns=["preference", "ab", "ba", "missing"], index=pairs.index)


def judged(workspace: Workspace, judge: Judge, **changes: Any) -> Params:
    """A workspace whose comparison `judge` has judged, as the stage would."""
    params = workspace(**changes)
    llm = settings("http://127.0.0.1:8000/v1", model="judge-7b")
    compare = params.compare.model_copy(update={"judge": "llm", "llm": llm})
    params = params.model_copy(update={"compare": compare})
    arms = read_arms()
    samples = read_samples(arms)
    compared = compared_pairs(arms, samples)
    controls = control_pairs(control_samples(samples["sft"]))
    verdicts = judge(pd.concat([compared, controls], ignore_index=True))
    document = judgements(compared, controls, verdicts, params.compare) | {"usage": USAGE}
    write_json("out/judgements/summary.json", tidy(document))
    verdict_table(compared, verdicts).to_parquet("out/judgements/verdicts.parquet")
    return params


def test_every_pair_of_the_comparison_is_asked_about(workspace: Workspace) -> None:
    params = workspace(every_method=True, prompts=8)
    arms = read_arms()
    samples = read_samples(arms)
    pairs = compared_pairs(arms, samples)
    inside = {name: table[table["domain"] == "in"] for name, table in samples.items()}
    assert len(pairs) == 2 * sum(map(len, inside.values()))
    assert set(pairs["baseline"]) == {"sft", "ppo"}
    keys = ["prompt_id", "temperature", "seed"]
    chosen = next(arm.name for arm in arms if not arm.has_model)
    for name in (DPO, chosen):
        own = pairs[(pairs["arm"] == name) & (pairs["baseline"] == "sft")]
        sft = inside["sft"].set_index(keys)
        for row in own.iloc[:5].itertuples():
            other = sft.loc[(row.prompt_id, row.temperature, row.seed)]
            assert (row.prompt, row.completion_b) == (other["prompt"], other["completion"])
        assert own["completion_a"].tolist() == inside[name]["completion"].tolist()
    assert params.compare.judge == "gold"


def test_a_language_model_s_verdicts_decide_the_wins(workspace: Workspace, tmp_path: Path) -> None:
    params = judged(workspace, by_name)
    rows = {(row["arm"], row["temperature"]): row for row in build(params, tmp_path)}
    assert rows[DPO, 1.0]["win_rate_vs_sft"] == 1.0
    assert rows["sft", 1.0]["win_rate_vs_sft"] == 0.5
    ppo = next(name for name, _ in rows if name.startswith("ppo"))
    assert rows[DPO, 1.0]["win_rate_vs_ppo"] == 1.0
    assert rows[ppo, 1.0]["win_rate_vs_ppo"] == 0.5
    document = read_json(tmp_path / "estimates.json")
    assert document["judge"] == "llm"
    assert document["judgements"] == read_json("out/judgements/summary.json")
    render(params, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "The judge is the language model judge-7b, asked in both orders" in page
    assert "1,234 answers took 56,789 tokens of prompts and 4,321 of answers" in page
    assert "at a cost of 0.25" in page
    assert "The judge is a language model, not people" in page
    pairs = document["judgements"]["order"]["pairs"]
    assert pairs > 1000
    assert f"pairs with the same winner in both orders of showing, over {pairs:,} pairs" in page


def joined() -> dict[str, pd.DataFrame]:
    """The samples with what was judged of them."""
    verdicts = pd.read_parquet("out/judgements/verdicts.parquet")
    return with_verdicts(read_samples(read_arms()), verdicts)


def test_missing_verdicts_are_left_out_and_told(workspace: Workspace) -> None:
    def forgetful(pairs: pd.DataFrame) -> pd.DataFrame:
        """Loses every third verdict, of those that would be wins."""
        found = by_name(pairs)
        lost = (found["preference"] == 1.0) & (found.index % 3 == 0)
        found.loc[lost, ["preference", "ab", "missing"]] = [math.nan, "", "timeout"]
        return found

    params = judged(workspace, forgetful)
    samples = joined()
    inside = {name: table[table["domain"] == "in"] for name, table in samples.items()}
    pairs = verdicts_of(inside[DPO], inside["sft"], params.compare, "sft")
    assert 0.3 < pairs["preference"].isna().mean() < 0.37
    assert won(pairs, params.compare).estimate == 1.0
    assert samples[DPO]["preference_vs_sft"].notna().sum() == pairs["preference"].notna().sum()
    summary = read_json("out/judgements/summary.json")
    assert summary["missing"]["timeout"] > 100
    assert list(summary["missing"].values()) == sorted(summary["missing"].values(), reverse=True)
    told = " ".join(judge_sentences(summary))
    assert f"timeout: {summary['missing']['timeout']}" in told
    assert "neither as ties nor as losses" in told
    assert summary["controls"]["failed"] == ["missing"]
    assert "failed a control (missing): don't trust its win rates" in told


def test_the_page_counts_the_verdicts_there_are(workspace: Workspace, tmp_path: Path) -> None:
    def forgetful(pairs: pd.DataFrame) -> pd.DataFrame:
        """Loses all verdicts on one prompt, and some others."""
        found = by_name(pairs)
        lost = (pairs["prompt_id"] == "in0000") | (found.index % 7 == 0)
        found.loc[lost, ["preference", "ab", "ba", "missing"]] = [math.nan, "", "", "timeout"]
        return found

    params = judged(workspace, forgetful)
    rows = {(row["arm"], row["temperature"]): row for row in build(params, tmp_path)}
    inside = {name: table[table["domain"] == "in"] for name, table in joined().items()}
    pairs = verdicts_of(inside[DPO], inside["sft"], params.compare, "sft")
    known = pairs[pairs["temperature"] == 1.0].dropna(subset="preference")
    row = rows[DPO, 1.0]
    assert row["win_rate_vs_sft_verdicts"] == len(known) < 0.9 * row["samples"]
    assert row["win_rate_vs_sft_prompts"] == known["prompt_id"].nunique() == row["prompts"] - 1
    document = read_json(tmp_path / "estimates.json")
    shown = document["rows"][[r["arm"] for r in document["rows"]].index(document["best"])]
    best = rows[document["best"], document["temperature"]]
    counts = (
        f"{best['win_rate_vs_sft_prompts']} prompts, {best['win_rate_vs_sft_verdicts']} verdicts"
    )
    assert shown["arm"] == best["arm"]
    assert counts in sentences(document)[0]
    length = {row["arm"]: row for row in length_section(document)["rows"]}
    assert length[DPO]["verdicts"] == str(len(known))
    assert length[DPO]["prompts"] == "39"
    figure = win_rate(document)["panels"][0]["data"]["values"]
    (told,) = (v["of"] for v in figure if (v["arm"], v["temperature"]) == (DPO, 1.0))
    assert told == f"39 prompts, {len(known)} verdicts"
    render(params, tmp_path)
    counted = [row["win_rate_vs_sft_verdicts"] for (_, t), row in rows.items() if t == 1.0]
    page = (tmp_path / "report.html").read_text()
    assert f"rests on {min(counted)} to {max(counted)} verdicts an arm" in page


def test_an_arm_without_any_verdict_is_said(workspace: Workspace) -> None:
    def silent(pairs: pd.DataFrame) -> pd.DataFrame:
        found = by_name(pairs)
        found.loc[pairs["completion_a"].str.startswith(" a dpo-b0.1"), "preference"] = math.nan
        return found

    judged(workspace, silent)
    with pytest.raises(UserError, match=f"no verdict on {DPO} against sft at T = 0"):
        joined()


def test_samples_that_were_not_judged_are_said(workspace: Workspace) -> None:
    judged(workspace, by_name)
    path = Path("out/judgements/verdicts.parquet")
    whole = pd.read_parquet(path)
    for table in (whole.iloc[5:], whole[whole["arm"] != DPO]):
        table.to_parquet(path)
        with pytest.raises(UserError, match="run `dvc repro judge`"):
            joined()


def test_the_section_on_a_judge_by_score(workspace: Workspace) -> None:
    workspace()
    section = judge_section(read_json("out/judgements/summary.json"))
    assert section["title"] == "the gold reward"
    assert section["order"] == []
    found = {row["control"]: row for row in section["controls"]}
    assert list(found) == ["null", "injection", "self", "longest", "missing"]
    assert found["null"] | {"about": ""} == {
        "control": "null",
        "about": "",
        "value": "0.0",
        "interval": found["null"]["interval"],
        "limit": "at most 50",
        "pairs": "40",
        "outcome": "passed",
    }
    assert found["longest"]["outcome"] == "not measured"  # all draws are of one length
    assert judge_sentences(read_json("out/judgements/summary.json")) == []
