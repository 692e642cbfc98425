"""The experiment on unlabelled prompts: its numbers against known ones, its figure, its files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from betaflow.config import CompareSettings, UnlabelledArm
from betaflow.errors import UserError
from betaflow.io import write_json
from betaflow.report.table import tidy
from betaflow.report.unlabelled import COLUMNS, unlabelled
from betaflow.report.unlabelled_files import write_unlabelled
from betaflow.report.unlabelled_plot import LINES, alt_text, draw_unlabelled

SETTINGS = CompareSettings(judge="gold", bootstrap=400, confidence=0.95, seed=0, report_samples=1)
SHARES, SEEDS, DRAWS = [0.05, 0.25, 1.0], [0, 1], 2
NAMES = {"in": [f"in{n:02d}" for n in range(40)], "out": [f"out{n:02d}" for n in range(16)]}
LEVELS = {
    name: level
    for names in NAMES.values()
    for name, level in zip(names, np.random.default_rng(0).normal(size=len(names)), strict=True)
}
# How much better than SFT each method is made to be.
GAINS = {"dpo": 0.5, "dpo_reward_model": 1.0, "dpo_implicit": 0.4, "ppo": 1.5}
ARMS = [
    UnlabelledArm(method=method, labelled=share, seed=seed, beta=0.3, learning_rate=0.001)  # type: ignore[arg-type]
    for share in SHARES
    for seed in SEEDS
    for method in GAINS
]


def scored(name: str, gain: float, domains: tuple[str, ...] = ("in", "out")) -> pd.DataFrame:
    random = np.random.default_rng(crc32(name.encode()))
    rows = [
        {
            "prompt_id": prompt, "domain": domain, "temperature": temperature, "seed": draw,
            "gold_reward": LEVELS[prompt] + gain / (1 + (domain == "out")) + random.normal() / 10,
            "reward_model": 0.0, "kl": gain if temperature else np.nan,
        }
        for domain in domains
        for prompt in NAMES[domain]
        for temperature in (0.0, 1.0)
        for draw in range(DRAWS if temperature else 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def labels_of(right: int, ties: int = 10, count: int = 60) -> pd.DataFrame:
    """Fresh pairs, so many of which are labelled as gold would, and some without an answer."""
    margins = [1.0] * right + [-1.0] * (count - right) + [0.0] * ties
    prompts = [f"p{n % 20}" for n in range(len(margins))]
    return pd.DataFrame({"prompt": prompts, "margin": 1.0, "gold_margin": margins})


SAMPLES = {arm.name: scored(arm.name, GAINS[arm.method] * (1 + arm.labelled)) for arm in ARMS}
LABELS = {arm.name: labels_of(45) for arm in ARMS if arm.method.startswith("dpo_")}
SFT = scored("sft", 0.0)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = tidy(unlabelled(ARMS, SAMPLES, LABELS, SFT, SETTINGS))
    return found


def row_of(document: dict[str, Any], method: str, share: float, temperature: float = 1.0) -> Any:
    (row,) = [
        row
        for row in document["rows"]
        if (row["method"], row["labelled"], row["temperature"]) == (method, share, temperature)
    ]
    return row


def test_a_row_a_method_a_share_and_a_temperature(document: dict[str, Any]) -> None:
    assert len(document["rows"]) == 4 * 3 * 2
    for row in document["rows"]:
        assert set(row) == set(COLUMNS)
        assert row["seeds"] == 2
        for name in ("reward", "reward_ood", "kl", "kl_ood", "win_rate_vs_sft"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"], name
    assert len(document["arms"]) == len(ARMS)


def test_means_are_of_all_seeds(document: dict[str, Any]) -> None:
    row = row_of(document, "ppo", 0.25)
    both = pd.concat([SAMPLES[f"unlabelled-ppo-f0.25-s{seed}"] for seed in SEEDS])
    both = both[both["temperature"] == 1.0]
    for domain, end in (("in", ""), ("out", "_ood")):
        expected = both.loc[both["domain"] == domain, "gold_reward"].mean()
        assert row[f"reward{end}"] == pytest.approx(expected, rel=1e-5)
        assert row[f"kl{end}"] == pytest.approx(1.5 * 1.25)
    # KL is of the policy at T = 1, on every row.
    assert row_of(document, "ppo", 0.25, 0.0)["kl"] == row["kl"]


def test_the_lead_over_dpo_is_paired_by_prompt(document: dict[str, Any]) -> None:
    for method, gain in GAINS.items():
        row = row_of(document, method, 1.0)
        if method == "dpo":
            assert row["minus_dpo"] is None
            continue
        assert row["minus_dpo"] == pytest.approx(2 * (gain - GAINS["dpo"]), abs=0.05)
        assert row["minus_dpo_ood"] == pytest.approx(gain - GAINS["dpo"], abs=0.1)
        # Prompts differ by far more than the two policies on one prompt do.
        assert row["minus_dpo_high"] - row["minus_dpo_low"] < 0.1
        assert row["reward_high"] - row["reward_low"] > 0.3


def test_labels_are_counted_against_gold_without_its_ties(document: dict[str, Any]) -> None:
    row = row_of(document, "dpo_implicit", 0.05)
    assert row["label_accuracy"] == pytest.approx(0.75)
    assert row["label_accuracy_low"] < 0.75 < row["label_accuracy_high"]
    assert row_of(document, "dpo", 0.05)["label_accuracy"] is None


def test_other_prompts_are_refused() -> None:
    name = ARMS[1].name
    fewer = SAMPLES | {name: SAMPLES[name][SAMPLES[name]["prompt_id"] != "in03"]}
    with pytest.raises(UserError, match="not sampled over the same prompts"):
        unlabelled(ARMS, fewer, LABELS, SFT, SETTINGS)


def test_the_figure(document: dict[str, Any]) -> None:
    figure = draw_unlabelled(document)
    assert isinstance(figure, Figure)
    inside, outside, kl = figure.axes
    assert [axes.get_xscale() for axes in figure.axes] == ["log"] * 3
    assert "nats" in kl.get_ylabel()
    assert inside.get_xticks().tolist() == SHARES
    assert "second domain" in outside.get_title()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len(LINES) + 2
    looks = [(line.look.marker, line.look.first) for line in LINES.values()]
    assert len({marker for marker, _ in looks}) == len({colour for _, colour in looks}) == 4
    text = alt_text(document)
    ppo = row_of(document, "ppo", 0.05)
    assert f"5% labelled: {ppo['reward']:.2f}, in the second domain {ppo['reward_ood']:.2f}" in text


def test_without_a_second_domain_there_is_no_panel_of_it() -> None:
    samples = {name: table[table["domain"] == "in"] for name, table in SAMPLES.items()}
    found = tidy(unlabelled(ARMS, samples, LABELS, SFT[SFT["domain"] == "in"], SETTINGS))
    assert found["rows"][0]["reward_ood"] is None
    assert len(draw_unlabelled(found).axes) == 2
    assert "second domain" not in alt_text(found)


def test_the_files_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = [{"name": arm.name, **arm.model_dump()} for arm in ARMS]
    write_json(out / "unlabelled/arms.json", rows)
    for arm in ARMS:
        (out / "unlabelled" / arm.name).mkdir()
        SAMPLES[arm.name].to_parquet(out / "unlabelled" / arm.name / "samples.parquet")
        if arm.name in LABELS:
            LABELS[arm.name].to_parquet(out / "unlabelled" / arm.name / "labels.parquet")
    (out / "samples").mkdir()
    SFT.to_parquet(out / "samples/sft.parquet")
    contents = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_unlabelled(SETTINGS, tmp_path / name, out=out)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"unlabelled.json", "table.csv", "unlabelled.png"}
    table = list(csv.DictReader(contents[0]["table.csv"].decode().splitlines()))
    assert list(table[0]) == COLUMNS and len(table) == 24
    written = json.loads(contents[0]["unlabelled.json"])
    assert written["reward"] == "gold_reward"
    assert written["figures"] == {"unlabelled.png": alt_text(written)}
    (out / "samples/sft.parquet").unlink()
    with pytest.raises(UserError, match=r"sft\.parquet is missing"):
        write_unlabelled(SETTINGS, tmp_path / "first", out=out)
