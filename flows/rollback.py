"""The flow `rollback`: point `champion` back at the version that it was before.

`prefect deployment run 'rollback/local'`, or by hand: `python -m flows.rollback`. Nothing is
deleted: `promote` can make the version champion again.
"""

from __future__ import annotations

if __name__ == "__main__":  # before Prefect is imported, which reads its settings then
    from flows.environment import by_hand

    by_hand()

import argparse
import sys

from prefect import flow, get_run_logger
from prefect.exceptions import TerminationSignal

from betaflow.config import load_params
from betaflow.errors import UserError
from flows import environment
from flows.artifacts import publish
from tasks.rollback import Rollback, roll_back


@flow(name="rollback", persist_result=False)
def rollback() -> Rollback:
    """Restore the champion before the present one."""
    done = roll_back(load_params())
    get_run_logger().info(done.sentence)
    publish(done.sentence, key="rollback")
    return done


def main() -> int:
    """Roll back by hand. Returns 0, 2 for a user's error, or 130 (Ctrl-C)."""
    argparse.ArgumentParser(
        prog="python -m flows.rollback",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    environment.catch_signals()
    try:
        load_params()
        with environment.start_api():
            print(rollback().sentence)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, TerminationSignal, SystemExit) as error:
        print("Interrupted. `champion` in the MLflow UI tells what was done.", file=sys.stderr)
        return environment.exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
