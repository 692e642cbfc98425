"""The benchmark stage without a task: an empty result at once, no model loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

import tasks.benchmark


def test_no_task_is_no_work(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = yaml.safe_load((repository / "params.yaml").read_text())
    params["benchmark"]["tasks"] = []
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--arm", "sft"])
    tasks.benchmark.main()  # there is no out/sft here
    found = json.loads(Path("out/benchmark/sft.json").read_text())
    assert found == {"arm": "sft", "engine": "vllm", "results": {}}
