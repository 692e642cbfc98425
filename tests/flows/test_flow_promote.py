"""The flows `promote` and `rollback` by hand: a table of the rules, and an exit status."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import yaml
from promotions import GOOD, judged, make_sweep
from small_workspace import Workspace

BOTH = f"""
import sys
from flows.environment import by_hand
by_hand()
from flows import promote, rollback
sys.argv = ["promote", "--arm", "{GOOD}"]
print("stale", promote.main())
import subprocess
subprocess.run([sys.executable, "-m", "dvc", "commit", "-q", "-f"], check=True)
print("refused", promote.main())
sys.argv = ["rollback"]
print("rolled", rollback.main())
"""


def test_a_refusal_is_a_result_with_its_reasons_and_status_one(
    workspace: Workspace, server: dict[str, str], tiny: Path, repository: Path
) -> None:
    make_sweep(workspace.path, tiny, repository)
    judged(workspace.path / "out", "null")
    stage = {"cmd": "true", "params": ["compare.bootstrap"], "outs": ["out/compare"]}
    (workspace.path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"compare": stage}}))
    kept = {k: v for k, v in workspace.environment.items() if not k.startswith("MLFLOW_TRACK")}
    done = subprocess.run(
        [sys.executable, "-c", BOTH],
        cwd=workspace.path,
        env=kept | server,
        capture_output=True,
        text=True,
        check=False,
    )
    shown, said = done.stdout, done.stderr
    assert "stale 2" in shown, said
    assert "the comparison is not of the present params" in said
    assert "refused 1" in shown, said
    assert "The judge failed null" in " ".join(shown.split())
    assert f"{GOOD}, version 1 of betaflow, was refused against sft: controls." in shown
    assert "rolled 2" in shown
    assert "error: betaflow has no champion to roll back" in said
    assert "Traceback" not in said
    request = urllib.request.Request(
        f"{server['PREFECT_API_URL']}/artifacts/filter",
        data=json.dumps({"artifacts": {"key": {"any_": ["promotion"]}}}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        artifacts = json.load(answer)
    assert "| controls | **no** | The judge failed null" in artifacts[-1]["data"]
