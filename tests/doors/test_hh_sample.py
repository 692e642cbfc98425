"""The path of real human pairs, on a sample of them: `presets/hh-sample.yaml` cut down."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from workspaces import SMALL_HH, make, run

pytestmark = [pytest.mark.door, pytest.mark.timeout(1800)]


def test_the_hh_sample_runs_end_to_end(
    tmp_path_factory: pytest.TempPathFactory, shared: Path
) -> None:
    folder = make(tmp_path_factory.mktemp("hh"), SMALL_HH, "presets/hh-sample.yaml")
    pairs = str(shared / "data/hh-harmless.jsonl.gz")
    run([sys.executable, *"-m dvc import-url -q".split(), pairs, "data/"], folder)
    run([sys.executable, "-m", "flows.align"], folder)
    statistics: dict[str, Any] = json.loads((folder / "out/data/statistics.json").read_text())
    assert statistics["rows_read"] == 160
    table = pd.read_csv(folder / "out/compare/table.csv")
    assert list(table.method) == ["sft", "dpo", "ppo"]
    assert table.gold_reward.isna().all()
    assert table.reward_model.notna().all()
    assert table.win_rate_vs_sft.notna().all()
    train, held = (
        {json.loads(line)["prompt"] for line in (folder / f"out/pairs/{s}.jsonl").open()}
        for s in ("train", "eval")
    )
    assert train and held and not train & held
