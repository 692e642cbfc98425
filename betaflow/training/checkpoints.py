"""Checkpoints: all that a run needs to go on to the same bytes; which are kept, which is used.

A checkpoint is a folder named by the steps done. It holds the weights that are trained, the
optimizer's state, torch's random state, the metrics rows and the seconds (`snapshot`). The
learning-rate schedule and the sampler have no state to keep: both are pure functions of the step.
The optimizer's settings come with the run's inputs, which the fingerprint stands for.

Folders appear whole, flushed to the disk, or not at all, and go by a rename. Dotted names among
them are what a killed process left; one process (or one torchrun) at a time trains a run.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import torch

from betaflow.errors import UserError
from betaflow.io import CHECKPOINTS, NoRoom, atomic_directory
from betaflow.training import distributed, snapshot
from betaflow.training.snapshot import Damaged, Modules

KEEP = 2


class Progress(NamedTuple):
    """Where a run stands: steps done, seconds spent on them, and a metrics row for each."""

    step: int
    seconds: float
    metrics: list[dict[str, Any]]


def folder(label: str) -> Path:
    """Where the checkpoints of a run lie."""
    return CHECKPOINTS / label


def newest(label: str) -> Path | None:
    """The newest checkpoint of a run, if there is one."""
    return next(reversed(_all(label)), None)


def save(
    label: str,
    fingerprint: str,
    modules: Modules,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    keep: int = KEEP,
    best: int | None = None,
) -> None:
    """Write a checkpoint beside the older ones; keep the newest `keep`, and that of step `best`.

    Raises:
        UserError: there is no room for it; the older ones are as they were.
    """
    parts = snapshot.gathered(modules, optimizer)
    failure: NoRoom | None = None
    if distributed.is_main():
        try:
            with atomic_directory(_path(label, progress.step)) as temporary:
                about = {"fingerprint": fingerprint, **progress._asdict()}
                snapshot.write(temporary, parts, about)
        except NoRoom as error:
            failure = error
    for _ in parts:  # the ranks gather together, also where rank 0 has given up writing
        pass
    if distributed.any_rank(failure is not None):
        raise UserError(_no_room(label, progress.step, failure)) from failure
    if distributed.is_main():
        for path in _all(label)[:-keep]:
            if path != _path(label, best or 0):
                _remove(path)


def resume(
    label: str, fingerprint: str, modules: Modules, optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Load the newest whole checkpoint of a run with the same inputs, if there is one.

    Damaged checkpoints (which it says) and those of other inputs are removed: left there, they
    would count among the newest. So is what a killed process left. A checkpoint of N processes is
    resumed by M, all reading the same file system; the random state is restored where M is N.

    Raises:
        UserError: a checkpoint can't be read for a reason that may pass.
    """
    chosen = _choose(label, fingerprint, modules) if distributed.is_main() else 0
    step = distributed.broadcast(chosen)
    if not step:
        return None
    path = _path(label, step)
    meta = snapshot.read(path)
    snapshot.restore(path, meta, modules, optimizer)
    return Progress(meta["step"], meta["seconds"], meta["metrics"])


def load_best(label: str, step: int, modules: Modules) -> None:
    """Load the weights that a run had after `step` steps back into its modules.

    Raises:
        UserError: that checkpoint is damaged. It and the later ones have been removed, so that
            the next run goes back to the one before and makes them again.
    """
    path, problem = _path(label, step), ""
    if distributed.is_main():
        try:
            snapshot.verify(path, snapshot.read(path), modules)
        except Damaged as error:
            problem = str(error)
            for later in _all(label):
                if later >= path:
                    _remove(later)
    if distributed.any_rank(bool(problem)):
        before = newest(label)
        start = f"goes on from {before}" if before else "starts at the beginning"
        raise UserError(
            f"{label}: the best checkpoint, {path}, is damaged ({problem}). It and the later ones "
            f"were removed: run again, which {start} and repeats the steps since"
        )
    snapshot.restore(path, snapshot.read(path), modules)


def _choose(label: str, fingerprint: str, modules: Modules) -> int:
    """The step of the checkpoint to use, 0 for none; removes what can't be used."""
    for left in folder(label).glob(".*"):
        shutil.rmtree(left, ignore_errors=True)
    for path in _all(label):
        if not _may_be_of(path, fingerprint):
            print(f"{label}: removed checkpoint {path.name}, of other inputs or code", flush=True)
            _remove(path)
    found = _all(label)
    while found:
        path = found.pop()
        try:
            snapshot.verify(path, snapshot.read(path), modules)
        except Damaged as error:
            instead = "using the one before" if found else "there is none before; starting again"
            print(f"{label}: checkpoint {path.name} is damaged ({error}); {instead}", flush=True)
            _remove(path)
        else:
            return int(path.name)
    return 0


def _may_be_of(path: Path, fingerprint: str) -> bool:
    try:
        return bool(snapshot.read(path)["fingerprint"] == fingerprint)
    except Damaged:
        return True  # whose it was can't be known; that it is damaged is worth saying


def _all(label: str) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted(folder(label).glob("[0-9]*"))


def _path(label: str, step: int) -> Path:
    return folder(label) / f"{step:08d}"


def _remove(path: Path) -> None:
    """Remove a checkpoint; killed half-way, it leaves a dotted name and no damaged checkpoint."""
    going = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        os.replace(path, going)
    except OSError:
        going = path
    shutil.rmtree(going, ignore_errors=True)


def _no_room(label: str, step: int, failure: NoRoom | None) -> str:
    reason, remedy = "rank 0 could not write it", "see what it says"
    if failure:
        reason, remedy = failure.reason, failure.remedy
    last = newest(label)
    kept = f"The last good checkpoint, {last}, is intact" if last else "There is no earlier one"
    after = ", which goes on from there" if last else ""
    return (
        f"{label}: the checkpoint of step {step} could not be written to {folder(label)}: "
        f"{reason}. {kept}: {remedy} and run again{after}"
    )
