"""benchmarks/length_ranking.py, on made-up judgements in AlpacaEval's layout."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from simulated import sigmoid

ROOT = Path(__file__).resolve().parents[2]
JUDGE = "weighted_alpaca_eval_gpt4_turbo"
BASELINE, BIAS, PROMPTS = 1000, 1.5, 805
# Rate at equal lengths, and mean length: the better, the shorter, so that plain rates mislead.
SYSTEMS = {"a": (0.6, 600), "b": (0.5, 900), "c": (0.4, 1300), "d": (0.3, 1800)}


@pytest.fixture
def alpaca_eval(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    rows = [",win_rate,avg_length,length_controlled_winrate"]
    for name, (rate, mean) in SYSTEMS.items():
        lengths = random.normal(mean, 300, PROMPTS).clip(20).astype(int)
        theirs = random.normal(BASELINE, 300, PROMPTS).clip(20).astype(int)
        longer = lengths - theirs
        chances = sigmoid(np.log(rate / (1 - rate)) + BIAS * np.tanh(longer / longer.std()))
        judged = [
            {"output_1": "x" * int(b), "output_2": "y" * int(a), "preference": 1 + float(p)}
            for a, b, p in zip(lengths, theirs, chances, strict=True)
        ]
        judged.append({"output_1": "x", "output_2": "y", "preference": None})
        folder = tmp_path / "results" / name / JUDGE
        folder.mkdir(parents=True)
        (folder / "annotations.json").write_text(json.dumps(judged))
        rows.append(f"{name},{100 * chances.mean()},{mean},{100 * rate}")
    rows.append("not judged here,50,1000,50")
    (tmp_path / "leaderboard.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def ranked(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.length_ranking", "--results", "results"]
    command += ["--leaderboard", "leaderboard.csv", *more]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_control_finds_the_published_order_where_plain_rates_do_not(alpaca_eval: Path) -> None:
    ended = ranked(alpaca_eval)
    assert ended.returncode == 0, ended.stderr
    spearman = dict(re.findall(r"^(\w+) against .*Spearman (-?[\d.]+)", ended.stdout, re.MULTILINE))
    assert spearman == {"ours": "1.0000", "plain": "-1.0000"}
    for name, (rate, _) in SYSTEMS.items():
        line = re.search(rf"^{name} +([\d.]+) .* ([\d.]+) +[\d.]+$", ended.stdout, re.MULTILINE)
        assert line is not None
        assert float(line[1]) == pytest.approx(rate, abs=0.03)
        assert float(line[2]) == rate
    assert "the same verdicts): 0.0000" in ended.stdout


def test_what_is_missing_or_malformed_is_said(alpaca_eval: Path) -> None:
    assert "0 systems with other/annotations.json" in ranked(alpaca_eval, "--judge", "other").stderr
    (alpaca_eval / "results/b" / JUDGE / "annotations.json").write_text('[{"preference": 1}]')
    ended = ranked(alpaca_eval)
    assert ended.returncode == 1
    assert "annotations.json is not a list of judgements" in ended.stderr
    assert "Traceback" not in ended.stderr
    (alpaca_eval / "leaderboard.csv").write_text(",win_rate\na,50\n")
    assert "has no column length_controlled_winrate" in ranked(alpaca_eval).stderr
    (alpaca_eval / "leaderboard.csv").unlink()
    assert "there is no leaderboard.csv" in ranked(alpaca_eval).stderr
