"""The flows `promote` and `rollback` by hand: a table of the rules, and an exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import yaml
from promotions import BETTER, GOOD, judged, make_sweep
from small_workspace import REPOSITORY, Workspace

ALL = f"""
import subprocess, sys
from flows.environment import by_hand
by_hand()
from flows import promote, rollback

def asked(flow, *words):
    sys.argv = [flow.__name__, *words]
    return flow.main()

print("stale", asked(promote, "--arm", "{GOOD}"))
subprocess.run([sys.executable, "-m", "dvc", "commit", "-q", "-f"], check=True)
print("refused", asked(promote, "--arm", "{GOOD}"))
print("nothing", asked(rollback))
from pathlib import Path
from promotions import judged
judged(Path("out"))
print("promoted", asked(promote, "--arm", "{GOOD}"))
print("promoted", asked(promote, "--arm", "{BETTER}"))
print("rolled", asked(rollback))
"""


def test_a_proxy_is_not_asked_for_the_server_on_this_machine(tmp_path: Path) -> None:
    code = (
        "import os; from flows.environment import by_hand; by_hand(); "
        "print(os.environ['no_proxy'], os.environ['NO_PROXY'])"
    )
    plain = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT")}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True,
        env=plain | {"http_proxy": "http://127.0.0.1:9", "no_proxy": "host", "NO_PROXY": ""},
    )  # fmt: skip
    assert told.stdout.split() == ["host,127.0.0.1", "127.0.0.1"]


def test_a_server_that_the_user_named_and_that_is_away_is_one_message(tmp_path: Path) -> None:
    away = {"PREFECT_API_URL": "http://name:hunter2@127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-m", "flows.rollback"], cwd=REPOSITORY, capture_output=True, text=True,
        env=os.environ | away, check=False,
    )  # fmt: skip
    assert told.returncode == 2
    assert "no Prefect server answers at http://127.0.0.1:9 " in told.stderr
    assert "unset PREFECT_API_URL" in told.stderr
    assert "hunter2" not in told.stdout + told.stderr


def test_every_decision_is_shown_with_its_status_and_kept_as_an_artifact(
    workspace: Workspace, server: dict[str, str], tiny: Path, repository: Path
) -> None:
    make_sweep(workspace.path, tiny, repository)
    judged(workspace.path / "out", "null")
    stages = yaml.safe_load((repository / "dvc.yaml").read_text())["stages"]
    code = ("betaflow/", "tasks/")
    known = {
        name: {"cmd": "true", "deps": [dep for dep in stages[name]["deps"] if dep.startswith(code)]}
        for name in ("sample-sft", "benchmark-sft")
    }
    known["compare"] = {"cmd": "true", "params": ["compare.bootstrap"], "outs": ["out/compare"]}
    (workspace.path / "dvc.yaml").write_text(yaml.safe_dump({"stages": known}))
    kept = {k: v for k, v in workspace.environment.items() if not k.startswith("MLFLOW_TRACK")}
    places = os.pathsep.join([kept["PYTHONPATH"], str(repository / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", ALL],
        cwd=workspace.path,
        env=kept | server | {"PYTHONPATH": places},
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
    assert "nothing 2" in shown
    assert "error: betaflow has no champion to roll back" in said
    assert shown.count("promoted 0") == 2, said
    back = "Version 1 of betaflow is champion again, instead of 2."
    assert f"{back}\nrolled 0" in shown
    assert "Traceback" not in said
    refused, accepted, second = artifacts(server, "promotion")
    assert "| controls | **no** | The judge failed null" in refused
    assert refused.startswith("**Refused.** ")
    name = f"{GOOD}, version 1 of betaflow,"
    assert accepted.startswith(f"**Promoted.** {name} became champion: every rule held against sft")
    assert "| controls | yes | The judge passed its controls. |" in accepted
    assert f"became champion: every rule held against version 1 ({GOOD})." in second
    assert artifacts(server, "rollback") == [back]


def artifacts(server: dict[str, str], key: str) -> list[str]:
    """The texts of Prefect's artifacts of a key, oldest first."""
    request = urllib.request.Request(
        f"{server['PREFECT_API_URL']}/artifacts/filter",
        data=json.dumps({"artifacts": {"key": {"any_": [key]}}}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        found = json.load(answer)
    return [one["data"] for one in sorted(found, key=lambda one: one["created"])]
