"""`dvc metrics` and `dvc plots` tell two versions of the comparison apart, by real DVC."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert
import yaml

DPO = "dpo-b0.1-lr0.001-s0"


def test_dvc_shows_the_same_numbers_and_figures(
    compared: Callable[..., Path], repository: Path, tmp_path: Path
) -> None:
    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def dvc(*words: str) -> Any:
        return json.loads(run(sys.executable, "-m", "dvc", *words, "--json"))

    folder = compared(prompts=8, resamples=100)
    shutil.copytree(folder, tmp_path / "made")
    shutil.copytree(repository / ".dvc/plots", tmp_path / ".dvc/plots")
    shutil.copy(repository / ".dvc/config", tmp_path / ".dvc/config")
    shutil.copy(repository / ".dvcignore", tmp_path / ".dvcignore")
    declared = yaml.safe_load((repository / "dvc.yaml").read_text())
    copy = {"cmd": "mkdir -p out && cp -r made out/compare", "deps": ["made"]}
    graph = {"stages": {"compare": copy | {"outs": ["out/compare"]}}}
    graph |= {name: declared[name] for name in ("metrics", "plots")}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(graph))
    (tmp_path / ".gitignore").write_text("/out\n/.dvc/cache\n/.dvc/tmp\n")
    run("git", "init", "-q")
    run(sys.executable, "-m", "dvc", "repro", "-q")
    run("git", "add", "-A")
    who = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    run("git", *who, "commit", "-qm", "One")

    table = pd.read_csv(tmp_path / "out/compare/figures.csv")
    table.loc[table["arm"] == DPO, "win_rate_vs_sft"] = 0.25
    table.to_csv(tmp_path / "out/compare/figures.csv", index=False)
    metrics = json.loads((tmp_path / "out/compare/metrics.json").read_text())
    before = metrics[DPO]["win_rate_vs_sft"]
    metrics[DPO]["win_rate_vs_sft"] = 0.25
    (tmp_path / "out/compare/metrics.json").write_text(json.dumps(metrics))

    told = dvc("metrics", "diff")["out/compare/metrics.json"]
    assert list(told) == [f"{DPO}.win_rate_vs_sft"]
    assert (told[f"{DPO}.win_rate_vs_sft"]["old"], told[f"{DPO}.win_rate_vs_sft"]["new"]) == (
        before,
        0.25,
    )
    plots = dvc("plots", "diff", "HEAD")["data"]
    pictures = {Path(name).name for name in plots if name.endswith(".png")}
    assert pictures == {path.name for path in (folder / "plots").iterdir()}
    for name, count in {"reward against KL": 2 * 6, "win rate against temperature": 2 * 15}.items():
        (drawn,) = plots[name]
        assert set(drawn["revisions"]) == {"HEAD", "workspace"}
        content = drawn["content"]
        found = json.loads(content) if isinstance(content, str) else content
        # Drawn for real: a mark for each arm (and temperature) of each version.
        svg = vl_convert.vegalite_to_svg(found)
        assert svg.count('aria-roledescription="point"') == count, name
