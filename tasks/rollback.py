"""Pointing `champion` back at the version that it was before."""

from __future__ import annotations

from typing import NamedTuple

from betaflow.config import Params
from betaflow.errors import UserError
from tasks import tracking
from tasks._decision import record_rollback
from tasks._registry import Registry


class Rollback(NamedTuple):
    """The registered model, the version that was champion and the one that is again."""

    model: str
    was: int
    version: int

    @property
    def sentence(self) -> str:
        """What was done, in words."""
        return f"Version {self.version} of {self.model} is champion again, instead of {self.was}."


def roll_back(params: Params) -> Rollback:
    """Restore the champion before the present one; again and again goes further back.

    Raises:
        UserError: there is no champion, or none before it; or it was done but not recorded.
    """
    from mlflow.exceptions import MlflowException

    with tracking.reachable():
        registry = Registry(tracking.client(), params.run.registered_model)
        done = Rollback(registry.model, *registry.restore_champion())
    try:
        record_rollback(registry, done.was, done.sentence)
    except MlflowException:
        raise UserError(
            f"{done.sentence} But MLflow did not record it on version {done.was}; don't roll back "
            "again, which would go further back"
        ) from None  # its cause may tell the registry's address with a password
    return done


if __name__ == "__main__":
    raise SystemExit("use `make rollback`, or `python -m flows.rollback` (with `--help`)")
