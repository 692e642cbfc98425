"""`dvc metrics` and `dvc plots` find what `compare` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from betaflow.io import write_json
from betaflow.report.pairwise_plot import pairwise_figure


def test_metrics_and_plots_are_those_of_the_comparison(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = yaml.safe_load((repository / "dvc.yaml").read_text())
    compare = {"cmd": "true", "outs": declared["stages"]["compare"]["outs"]}
    kept = {key: declared[key] for key in ("metrics", "plots")} | {"stages": {"compare": compare}}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(kept))
    monkeypatch.chdir(tmp_path)
    write_json("out/compare/metrics.json", {"dpo": {"rating": 12.5}})
    Path("out/compare/plots").mkdir()
    ratings = [{"arm": "sft", "rating": 0.0}, {"arm": "dpo", "rating": 12.5}]
    found = {"temperature": 1.0, "rows": [], "ratings": ratings}
    pairwise_figure(found).savefig("out/compare/plots/pairwise.png")
    with Repo.init(no_scm=True) as repo:
        metrics = repo.metrics.show()[""]["data"]
        assert metrics["out/compare/metrics.json"]["data"] == {"dpo": {"rating": 12.5}}
        plots = repo.plots.show()["workspace"]["sources"]["data"]
        assert list(plots) == ["out/compare/plots/pairwise.png"]
        assert plots["out/compare/plots/pairwise.png"]["data"].startswith(b"\x89PNG")
