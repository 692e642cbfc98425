"""The graph and what is out of date, as DVC tells them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from small_workspace import GRAPH, REPOSITORY, STAGES, Workspace

from betaflow.errors import UserError
from flows.graph import Stage, closing, dirty_stages, open_workspace, read_graph, waiting_on


def dirty(workspace: Workspace) -> set[str]:
    with open_workspace(workspace.path) as repo:
        return dirty_stages(repo, read_graph(repo))


def write_graph(workspace: Workspace, **stages: object) -> None:
    text = yaml.safe_dump({"stages": GRAPH["stages"] | stages}, sort_keys=False)
    (workspace.path / "dvc.yaml").write_text(text)


def test_the_graph_is_dvc_yamls(workspace: Workspace) -> None:
    with open_workspace(workspace.path) as repo:
        graph = read_graph(repo)
    names = list(graph)
    assert set(names) == STAGES
    assert graph["arm@1.0"].upstream == ("first",)
    assert graph["last"].upstream == ("arm@0.1",)
    assert graph["arm@0.1"].resource == "device"
    assert graph["first"].resource == "cpu"
    for name, stage in graph.items():
        assert all(names.index(needed) < names.index(name) for needed in stage.upstream)
    assert waiting_on(graph) == {"first": 3, "arm@0.1": 1, "arm@1.0": 0, "last": 0, "apart": 0}


def test_the_repositorys_own_graph_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    with open_workspace(REPOSITORY) as repo:
        graph = read_graph(repo)
    assert {"prepare", "sft", "compare"} <= set(graph)
    assert [name for name in graph if name.startswith("dpo@")]
    assert list(graph)[-1] == "compare"
    last = {name.split("@")[0] for name in closing(graph)}
    assert {"sample-dpo", "benchmark-ppo", "judge", "compare"} <= last
    assert not last & {"prepare", "sft", "pairs", "reference", "reward", "dpo", "ppo"}


def test_what_lets_no_other_start_by_its_end_alone_closes() -> None:
    needs: dict[str, tuple[str, ...]] = {
        "base": (),
        "arm@0": ("base",),
        "arm@1": ("base",),
        "sample@0": ("base", "arm@0"),  # `base` was needed by its arm, too
        "sample@1": ("base", "arm@1"),
        "extra": ("base",),
        "best": ("extra", "sample@0"),
        "compare": ("sample@0", "sample@1", "best"),
    }
    graph = {name: Stage(name, upstream) for name, upstream in needs.items()}
    assert closing(graph) == {"sample@0", "sample@1", "extra", "best", "compare"}


def test_what_is_out_of_date_and_all_downstream_of_it_is_dirty(workspace: Workspace) -> None:
    assert dirty(workspace) == STAGES
    workspace.dvc("repro")
    assert dirty(workspace) == set()

    (workspace.path / "out/arm/0.1.txt").unlink()
    assert dirty(workspace) == {"arm@0.1", "last"}
    workspace.dvc("checkout")

    params = workspace.path / "params.yaml"
    params.write_text(params.read_text().replace("experiment: betaflow", "experiment: other"))
    assert dirty(workspace) == {"apart"}

    (workspace.path / "source.txt").write_text("changed\n")
    assert dirty(workspace) == STAGES


def test_data_that_dvc_tracks_is_upstream(workspace: Workspace) -> None:
    workspace.dvc("add", "-q", "source.txt")
    with open_workspace(workspace.path) as repo:
        assert read_graph(repo)["first"].upstream == ("source.txt.dvc",)
    assert "source.txt.dvc" not in dirty(workspace)
    (workspace.path / "source.txt").write_text("changed\n")
    assert "source.txt.dvc" in dirty(workspace)


def test_mistakes_in_dvc_yaml_are_one_message(workspace: Workspace, tmp_path: Path) -> None:
    def error() -> str:
        with pytest.raises(UserError) as caught, open_workspace(workspace.path) as repo:
            read_graph(repo)
        return str(caught.value)

    write_graph(workspace, bad={"cmd": "true", "outs": ["out/${no.such.key}"]})
    assert "dvc.yaml" in error()
    assert "no.such.key" in error()
    (workspace.path / "dvc.yaml").write_text("stages: [")
    assert "dvc.yaml" in error()
    write_graph(workspace, bad={"cmd": "true", "meta": {"resource": "tpu"}})
    assert "tpu" in error()
    (workspace.path / "dvc.yaml").unlink()
    assert "no dvc.yaml" in error()
