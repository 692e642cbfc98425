"""The stage graph and what in it is out of date, both as DVC sees them.

`dvc.yaml` declares the graph once; nothing here names a stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx
from dvc.exceptions import DvcException
from dvc.repo import Repo

from betaflow.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One node of the graph; `name` is what `dvc repro` calls it, such as `dpo@dpo-0.1-0.001-0`.

    It runs in so many `processes`, each of which needs a place (`resource`) of its own.
    """

    name: str
    upstream: tuple[str, ...]
    resource: str = "cpu"
    processes: int = 1


Graph = Mapping[str, Stage]  # by name, each stage after all of its upstream


def open_workspace(workspace: Path) -> Repo:
    """Open the DVC repository whose `dvc.yaml` lies in `workspace`. Raises `UserError`."""
    if not (workspace / "dvc.yaml").is_file():
        raise UserError(f"there is no dvc.yaml in {workspace}; run from the repository's root")
    try:
        # DVC commands of other processes hold the lock for moments only: wait for them.
        return Repo(str(workspace), _wait_for_lock=True)
    except DvcException as error:
        raise UserError(f"{workspace} is not a DVC repository ({error}); run `dvc init`") from None


def read_graph(repo: Repo) -> Graph:
    """The pipeline's stages, and the `.dvc` files they need, in topological order.

    Raises `UserError` where `dvc.yaml`, or a params file it names, can't be used.
    """
    try:
        edges = repo.index.graph  # from a stage to what it needs
    except DvcException as error:
        raise UserError(f"dvc.yaml can't be used: {_reasons(error)}") from None
    order = {node: place for place, node in enumerate(repo.index.stages)}
    pipeline = {node for node in edges if _is_pipeline(node, repo)}
    # Like `dvc repro`: data that no stage needs is none of our business.
    wanted = pipeline.union(*(networkx.descendants(edges, node) for node in pipeline))
    kept = edges.subgraph(wanted).reverse(copy=True)
    graph: dict[str, Stage] = {}
    for node in networkx.lexicographical_topological_sort(kept, key=order.__getitem__):
        upstream = tuple(sorted(needed.addressing for needed in edges.successors(node)))
        graph[node.addressing] = Stage(node.addressing, upstream, *_needs(node))
    if not graph:
        raise UserError("dvc.yaml declares no stages")
    return graph


def _is_pipeline(node: Any, repo: Repo) -> bool:
    return bool(node.cmd) and Path(node.path) == Path(repo.root_dir, "dvc.yaml")


def _needs(node: Any) -> tuple[str, int]:
    """`meta.resource` and `meta.processes` of a stage in `dvc.yaml`."""
    meta = node.meta or {}
    resource, processes = meta.get("resource", "cpu"), meta.get("processes", 1)
    if resource not in ("cpu", "device"):
        raise UserError(
            f"dvc.yaml: {node.addressing}: meta.resource {resource!r}: not cpu or device"
        )
    if not isinstance(processes, int) or processes < 1:
        raise UserError(f"dvc.yaml: {node.addressing}: meta.processes {processes!r}: not a count")
    return resource, processes


def _reasons(error: BaseException | None) -> str:
    """DVC keeps the telling part of a message in the error's cause."""
    found: list[str] = []
    while error is not None:
        text = " ".join(str(error).split())
        if text and text not in found:
            found.append(text)
        error = error.__cause__
    return ": ".join(found)


def dirty_stages(repo: Repo, graph: Graph) -> set[str]:
    """Names of the stages to run: changed by `dvc status`, or downstream of one that is."""
    try:
        changed = repo.status()
    except DvcException as error:
        raise UserError(f"dvc status failed: {_reasons(error)}") from None
    dirty: set[str] = set()
    for stage in graph.values():
        if stage.name in changed or dirty.intersection(stage.upstream):
            dirty.add(stage.name)
    return dirty


def waiting_on(graph: Graph) -> dict[str, int]:
    """How many stages need each one, directly or not: what to run first when all can't run."""
    edges = _edges(graph)
    return {name: len(networkx.descendants(edges, name)) for name in graph}


def closing(graph: Graph) -> set[str]:
    """Stages whose end alone lets no other start: what comes next waits for more than they needed.

    The samples of an arm, say, if all that reads them is the comparison of all arms.
    """
    edges = _edges(graph)
    found = set()
    for name in graph:
        before = networkx.ancestors(edges, name) | {name}
        if not any(before.issuperset(graph[later].upstream) for later in edges[name]):
            found.add(name)
    return found


def _edges(graph: Graph) -> networkx.DiGraph:
    """From each stage to those that need it."""
    edges = networkx.DiGraph((needed, s.name) for s in graph.values() for needed in s.upstream)
    edges.add_nodes_from(graph)  # those too that nothing needs and that need nothing
    return edges
