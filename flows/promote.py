"""The flow `promote`: register an arm's model and move the alias `champion` to it.

`prefect deployment run 'promote/local'` promotes the best arm by `promotion` in params.yaml;
`--param arm=NAME` names another. By hand: `python -m flows.promote [--arm NAME]`.
"""

from __future__ import annotations

if __name__ == "__main__":  # before Prefect is imported, which reads its settings then
    from flows.environment import by_hand

    by_hand()

import argparse
import sys

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from betaflow.config import load_params
from betaflow.errors import UserError
from flows import environment
from tasks.promote import Promotion, promote_arm


@flow(name="promote", persist_result=False)
def promote(arm: str | None = None) -> int:
    """Register the arm (default: the best one) and move `champion`; return the new version."""
    done = promote_arm(load_params(), arm)
    get_run_logger().info(_sentence(done))
    create_markdown_artifact(_sentence(done), key="promotion")
    print(_sentence(done))
    return done.version


def _sentence(done: Promotion) -> str:
    value = "not measured" if done.value is None else f"{done.value:.4g}"
    return (
        f"{done.arm} is version {done.version} of the registered model {done.model} and its "
        f"champion ({done.metric}: {value}). Load it with "
        f"mlflow.transformers.load_model('models:/{done.model}@champion')."
    )


def main() -> int:
    """Promote by hand. Returns the exit status: 0, or 2 for a user's error."""
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description=__doc__)
    parser.add_argument("--arm", help="an arm's name, as in out/arms.json; default: the best one")
    arguments = parser.parse_args()
    try:
        load_params()
        with environment.start_api():
            promote(arguments.arm)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
