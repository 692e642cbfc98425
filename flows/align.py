"""The flow `align`: every stage of `dvc.yaml` that is out of date, in parallel within limits.

By hand, with no server to start: `python -m flows.align`. As a deployment: `align/local`.
"""

from __future__ import annotations

if __name__ == "__main__":  # before Prefect is imported, which reads its settings then
    from flows.environment import by_hand

    by_hand()

import argparse
import sys
from pathlib import Path
from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.exceptions import TerminationSignal
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from rich.console import Console

from betaflow.config import load_params
from betaflow.errors import UserError
from flows import comparison, environment
from flows.artifacts import publish_table
from flows.display import Display, for_console
from flows.graph import dirty_stages, open_workspace, read_graph
from flows.lock import workspace_lock
from flows.schedule import AGAIN, StagesFailed, run_all
from flows.stages import GRACE, end_processes, of_workspace
from tasks.tracking import server

# What the run shows besides Prefect's log; `main` puts a real one here.
_display: Display = Display()

# Its threads: as many as run at once; the limits are `run_all`'s.
_threads = cast("TaskRunner[Any]", ThreadPoolTaskRunner())


@flow(name="align", task_runner=_threads, persist_result=False)
def align() -> None:
    """Run every stage that is out of date, as many at once as `params.run` allows.

    The workspace is the current directory. Raises `UserError` where the workspace can't be
    used and `StagesFailed` where stages failed.
    """
    workspace = Path.cwd()
    logger = get_run_logger()
    settings = load_params().run
    with workspace_lock(workspace):
        # We hold the lock, so these belong to a flow that was killed.
        end_processes(lambda: of_workspace(workspace), GRACE)
        with open_workspace(workspace) as repo:
            graph = read_graph(repo)
            dirty = dirty_stages(repo, graph)
        clean = [name for name in graph if name not in dirty]
        if clean:
            logger.info("Up to date: %s", ", ".join(clean))
        with _display:
            _display.plan(len(clean), len(dirty))
            run_all(workspace, graph, dirty, settings, _display)
        rows = comparison.read_table(workspace)
        if rows:
            publish_table(rows, key="comparison", description="out/compare/table.csv")
            logger.info("Report: out/compare/report.html; every run: %s", _runs())


def main(arguments: list[str] | None = None) -> int:
    """Run the flow by hand. Returns 0, 1 (stages failed), 2 (`UserError`) or 130 (Ctrl-C)."""
    global _display
    argparse.ArgumentParser(
        prog="python -m flows.align",
        description="Run every stage of dvc.yaml that is out of date, in the current directory. "
        "Settings are in params.yaml: run.jobs stages run at once, and one a GPU where run.gpus "
        "is set. Ctrl-C stops; running it again goes on from there. `dvc repro` does the same "
        "job one stage at a time; the deployment align/local does it on Prefect's servers.",
    ).parse_args(arguments)
    environment.catch_signals()
    workspace = Path.cwd()
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    try:
        _check(workspace)
        _display = for_console(console)
        with environment.start_api():
            align()
        _show(console, workspace)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except StagesFailed as error:
        print(f"\n{error}\n\nMend it and run again: it goes on from there.", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, TerminationSignal, SystemExit) as error:
        print(f"Interrupted; no stage is left running, and {AGAIN}.", file=sys.stderr)
        return environment.exit_code(error)
    return 0


def _check(workspace: Path) -> None:
    """Find the user's mistakes before anything starts."""
    load_params()
    with workspace_lock(workspace), open_workspace(workspace) as repo:
        read_graph(repo)


def _show(console: Console, workspace: Path) -> None:
    rows = comparison.read_table(workspace)
    if rows:
        console.print(comparison.render(rows))
        console.print(f"Report: out/compare/report.html     Every run, in MLflow: {_runs()}")


def _runs() -> str:
    """Where the runs are to be seen."""
    return server() or "make ui"


if __name__ == "__main__":
    sys.exit(main())
