"""Promotions as processes of their own, to be killed or raced: forked, so that imports are once.

`python promotion_trial.py KILL RACE TWICE GOOD BETTER SAME`: three workspaces, and three arms of
each, the first worse than the others. Its last line says what came of each.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow.transformers
from mlflow import MlflowClient
from promotions import judged

from betaflow.config import load_params
from betaflow.io import LOCAL
from tasks import _claim
from tasks._registry import REPLACES, Registry
from tasks.promote import promote_arm

KILL, RACE, TWICE, GOOD, BETTER, SAME = sys.argv[1:]
# The methods of MLflow's client during which a promotion is killed, in the order of their calls;
# of some only the calls about what is named, and whether the call is done before.
POINTS: list[tuple[str, str, bool]] = [
    ("create_model_version", "", True),  # known, with neither alias nor decision
    ("set_registered_model_tag", _claim.CLAIM, True),
    ("set_model_version_tag", REPLACES, True),
    ("set_registered_model_alias", "champion", False),
    ("set_registered_model_alias", "champion", True),  # champion, its claim left behind
]


def warm_up() -> None:
    """Have imported here, and not in every child, what a promotion imports when it comes to it."""
    LOCAL.mkdir()
    shutil.copy("mlflow.db", LOCAL / "warm.db")  # the real one is opened by children alone
    uri = f"sqlite:///{LOCAL.resolve()}/warm.db"
    MlflowClient(uri, uri).search_registered_models()
    requirements = ["torch", "transformers"]
    mlflow.transformers.save_model(
        "out/sft", str(LOCAL / "warm"), task="text-generation", pip_requirements=requirements
    )


def fork(work: Callable[[], Any]) -> int:
    """Start a process that does some work; it has no connection of this one's."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            status = int(work())
        finally:
            os._exit(status)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(method: str, about: str, done: bool) -> None:
    real = getattr(MlflowClient, method)

    def deadly(self: MlflowClient, *arguments: Any, **named: Any) -> Any:
        ours = any(str(one).startswith(about) for one in arguments)
        if ours and done:
            real(self, *arguments, **named)
        if ours:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *arguments, **named)

    setattr(MlflowClient, method, deadly)


def promote(arm: str) -> int:
    return 0 if promote_arm(load_params(), arm).promoted else 1


def champion() -> tuple[int, str]:
    """The champion's number, and the arm that it holds, as the database has them."""
    query = """select a.version, t.value from registered_model_aliases a
        join model_version_tags t on t.name = a.name and t.version = a.version
        where a.alias = 'champion' and t.key = 'betaflow.arm'"""
    with closing(sqlite3.connect("mlflow.db")) as database:
        ((number, arm),) = database.execute(query).fetchall()
    return number, arm


def kill() -> list[Any]:
    """The champion after each of the points."""
    _claim.PATIENCE = float("inf")  # of a process that is dead nothing is waited for
    assert ended(fork(lambda: promote(GOOD))) == 0
    found = []
    for point in POINTS:

        def cut(point: tuple[str, str, bool] = point) -> int:
            kill_at(*point)
            return promote(BETTER)

        assert ended(fork(cut)) == -signal.SIGKILL, point
        found.append(champion())
    return found


def race() -> list[Any]:
    assert ended(fork(lambda: promote(GOOD))) == 0
    return meet(BETTER, SAME)


def twice() -> list[Any]:
    """The same of one arm, of which there is a version that was refused."""
    assert ended(fork(lambda: promote(GOOD))) == 0
    judged(Path("out"), "null")
    assert ended(fork(lambda: promote(BETTER))) == 1
    judged(Path("out"))
    return meet(BETTER, BETTER)


def meet(*arms: str) -> list[Any]:
    """Two whole promotions that meet where the champion is moved: each one's exit, the champion."""
    (one_waits, one_says), (two_waits, two_says) = os.pipe(), os.pipe()
    real = Registry.move_champion

    def meeting(mine: int, theirs: int) -> Callable[..., None]:
        def move(self: Registry, to: int, *, instead_of: int | None) -> None:
            os.write(theirs, b"x")
            os.read(mine, 1)
            real(self, to, instead_of=instead_of)

        return move

    def run(arm: str, mine: int, theirs: int) -> int:
        Registry.move_champion = meeting(mine, theirs)  # type: ignore[method-assign]
        return promote(arm)

    children = [
        fork(lambda: run(arms[0], one_waits, two_says)),
        fork(lambda: run(arms[1], two_waits, one_says)),
    ]
    return [[ended(child) for child in children], champion()]


def main() -> None:
    found = {}
    for name, folder, work in (("kill", KILL, kill), ("race", RACE, race), ("twice", TWICE, twice)):
        os.chdir(folder)
        if not found:
            warm_up()
        found[name] = work()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
