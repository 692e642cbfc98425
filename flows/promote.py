"""The flow `promote`: judge the best arm by the rules, register it, and move `champion` to it.

`prefect deployment run 'promote/local'` takes the best arm by `promotion` in params.yaml;
`--param arm=NAME` names another. By hand: `python -m flows.promote [--arm NAME]`. The rules are in
params.yaml: promotion; docs/promotion.md explains them.
"""

from __future__ import annotations

if __name__ == "__main__":  # before Prefect is imported, which reads its settings then
    from flows.environment import by_hand

    by_hand()

import argparse
import sys
import traceback
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.exceptions import TerminationSignal
from rich.console import Console
from rich.table import Table
from rich.text import Text

from betaflow.config import load_params
from betaflow.errors import UserError
from flows import environment
from flows.artifacts import publish
from flows.graph import dirty_stages, open_workspace, read_graph
from flows.lock import workspace_lock
from tasks import tracking
from tasks.promote import Decision, promote_arm

COMPARISON = "compare"  # the stage that needs all that a promotion reads


@flow(name="promote", persist_result=False)
def promote(arm: str | None = None) -> Decision:
    """Judge an arm (default: the best one); make it champion if every rule holds.

    The workspace is the current directory. A refusal is a result, not an error: see `promoted`.
    """
    workspace = Path.cwd()
    with workspace_lock(workspace), tracking.reachable():  # its files must not change meanwhile
        _require_up_to_date(workspace)
        decision = promote_arm(load_params(), arm)
    get_run_logger().info(decision.sentence)
    publish(decision.markdown, key="promotion")
    return decision


def _require_up_to_date(workspace: Path) -> None:
    """Stop where the comparison is not of the params, data and code that are there now."""
    with open_workspace(workspace) as repo:
        stale = COMPARISON in dirty_stages(repo, read_graph(repo))
    if stale:
        raise UserError(
            "the comparison is not of the present params, data and code, so it can't decide; "
            "run `make align` (`dvc status` shows what changed)"
        )


def show(decision: Decision, console: Console) -> None:
    """The rules as a table, and the decision."""
    table = Table(title=f"{decision.arm} against {decision.against}", title_justify="left")
    for title in ("rule", "holds", "why"):
        table.add_column(title, overflow="fold")
    for rule in decision.rules:
        verdict = Text("yes", style="green") if rule.held else Text("no", style="bold red")
        table.add_row(Text(rule.name), verdict, Text(rule.reason))
    console.print(table)
    console.print(Text(decision.sentence))
    if decision.promoted:
        uri = f"models:/{decision.model}@champion"
        console.print(Text(f"Load it: mlflow.transformers.load_model('{uri}'). Talk: make chat"))
        return
    console.print(Text("The champion stays as it was. docs/promotion.md explains every rule."))


def main() -> int:
    """Promote by hand. Returns 0, 1 (refused), 2 (a user's error), 3 (any other), 128 + signal."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.promote",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=(
            "Exit status: 0 promoted, 1 refused by a rule, 2 could not be judged; 130 or 143 "
            "stopped, 3 an error that was not foreseen: then `champion` in the MLflow UI tells "
            "what was done."
        ),
    )
    parser.add_argument("--arm", help="an arm's name, as in out/arms.json; default: the best one")
    arguments = parser.parse_args()
    environment.catch_signals()
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    try:
        load_params()
        with environment.start_api():
            decision = promote(arguments.arm)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, TerminationSignal, SystemExit) as error:
        print("Interrupted. `champion` in the MLflow UI tells what was done.", file=sys.stderr)
        return environment.exit_code(error)
    except Exception:
        traceback.print_exc()  # 1, which Python would exit with, is a refusal
        return 3
    show(decision, console)
    return 0 if decision.promoted else 1


if __name__ == "__main__":
    sys.exit(main())
