"""Pointing `champion` back at the version that it was before."""

from __future__ import annotations

from typing import NamedTuple

from betaflow.config import Params
from tasks import tracking
from tasks._registry import TAG, Registry


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
        UserError: there is no champion, or none before it.
    """
    with tracking.reachable():
        registry = Registry(tracking.client(), params.run.registered_model)
        was, version = registry.restore_champion()
        registry.tag(was, {f"{TAG}decision": "rolled back"})
    return Rollback(registry.model, was, version)
