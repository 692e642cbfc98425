"""Promotion: register an arm's model and move the alias `champion` to it.

`prefect deployment run 'promote/local'` promotes the best arm by `promotion` in params.yaml;
`-p arm=NAME` names another. The registered version carries its own copy of the weights, so a
champion is whole by itself, and loads back with `mlflow.transformers.load_model`.
"""

from __future__ import annotations

import argparse
import sys

from flows.environment import prepare_environment

prepare_environment()

from prefect import flow, get_run_logger  # noqa: E402  (the environment decides how it starts)
from prefect.artifacts import create_markdown_artifact  # noqa: E402

from betaflow.config import load_params  # noqa: E402
from betaflow.errors import UserError  # noqa: E402
from tasks.promote import Promotion, promote_arm  # noqa: E402


@flow(name="promote", persist_result=False)
def promote(arm: str | None = None) -> int:
    """Register the arm (default: the best one) and move `champion`; return the new version."""
    done = promote_arm(load_params(), arm)
    get_run_logger().info(_sentence(done))
    create_markdown_artifact(_sentence(done), key="promotion")
    return done.version


def _sentence(done: Promotion) -> str:
    return (
        f"{done.arm} is version {done.version} of the registered model {done.model} and its "
        f"champion ({done.metric} = {done.value:.4g}); load it with "
        f"mlflow.transformers.load_model('models:/{done.model}@champion')"
    )


def main() -> None:
    """Promote from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", help="an arm's name, as in out/arms.json; default: the best one")
    arguments = parser.parse_args()
    try:
        promote(arguments.arm)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
