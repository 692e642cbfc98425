"""The training loop that every method shares.

What a step does is a function of the step's number, the weights and torch's random state alone
(batches are drawn by (seed, step)), and a checkpoint holds the last two, so a run that is stopped
and resumed takes the same steps as one that is not. Early stopping is a function of the metrics
rows, which the checkpoint holds as well.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import torch
from torch import nn

from betaflow.errors import UserError
from betaflow.progress import track
from betaflow.training import checkpoints, distributed

Update = Callable[[int], dict[str, float]]
Items = Callable[[int], list[str]]

NAMED_ITEMS = 8


class Trained(NamedTuple):
    """A metrics row for each step, and the seconds that the steps took.

    `best_step` is the (0-based) step whose weights were put back; None without `best_of`, or
    where no row carried it.
    """

    metrics: list[dict[str, Any]]
    seconds: float
    best_step: int | None = None


class Stopped(SystemExit):
    """SIGINT or SIGTERM was heard; a checkpoint has been saved. Exits with 128 + the signal."""


class NotFinite(ArithmeticError):
    """Metrics of a step that are NaN or infinite, and the ids of the items at fault, if known."""

    def __init__(self, metrics: Sequence[str], items: Sequence[str] = ()) -> None:
        super().__init__(f"{', '.join(metrics)} is not finite")
        self.metrics, self.items = list(metrics), list(items)


def fit(
    label: str,
    steps: int,
    update: Update,
    *,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    fingerprint: str,
    checkpoint_seconds: float,
    show: tuple[str, ...] = ("loss",),
    on_step: Callable[[dict[str, Any]], None] | None = None,
    keep: int = checkpoints.KEEP,
    best_of: str | None = None,
    patience: int | None = None,
    items: Items | None = None,
    history: list[dict[str, Any]] | None = None,
) -> Trained:
    """Call `update(step)` for every step that no checkpoint holds, and keep what it returns.

    With many processes every rank calls this, and `update` returns the same row on each; rank 0
    alone prints, writes and calls `on_step`.

    Args:
        label: the run's name, for progress and checkpoints.
        update: takes one step, 0-based, and returns its metrics; may raise `NotFinite`.
        modules: what is trained, by name.
        fingerprint: of the run's inputs; a checkpoint of other inputs is not used.
        show: metrics to show with the progress.
        on_step: called with each new metrics row.
        keep: how many checkpoints are kept, besides the best one.
        best_of: a metric (lower is better) that some rows carry; the weights of the step where
            it was lowest are put back in the end.
        patience: stop after so many values of `best_of` in a row that improve on nothing; None
            never stops.
        items: the ids of a step's training items, for the message when a metric is not finite.
        history: an empty list that is given the rows, a checkpoint's too, for `update` to read.

    Raises:
        UserError: a metric or a weight is not finite (names the step, the items and the last good
            checkpoint); the disk is full; the best checkpoint is damaged.
        Stopped: a signal was heard, after a checkpoint was saved.
    """
    found = checkpoints.resume(label, fingerprint, modules, optimizer)
    metrics = [] if history is None else history
    metrics += found.metrics if found else []
    before = found.seconds if found else 0.0
    began = saved = time.monotonic()
    if found:
        _say(f"{label}: resumed at step {found.step} of {steps}")

    def save() -> None:
        _require_finite_weights(label, modules, metrics[-1])
        spent = before + time.monotonic() - began
        progress = checkpoints.Progress(len(metrics), spent, metrics)
        best = best_step(metrics, best_of)
        checkpoints.save(
            label, fingerprint, modules, optimizer, progress,
            keep=keep, best=None if best is None else best + 1,
        )  # fmt: skip

    quiet = not distributed.is_main()
    with _signals() as heard, track(steps, label, start=len(metrics), quiet=quiet) as progress:
        tokens = 0.0
        ended = len(metrics) >= steps or _out_of_patience(metrics, best_of, patience)
        while not ended:
            step = len(metrics)
            row = _finite_row(label, update, step, items)
            metrics.append(row)
            tokens += row.get("tokens", 0)
            pace = {"tokens/s": tokens / (time.monotonic() - began)} if tokens else {}
            progress.update(step + 1, **{key: row[key] for key in show if key in row}, **pace)
            if distributed.any_rank(bool(heard)):
                save()
                _say(f"{label}: saved step {step + 1}; the next run goes on from there")
                raise Stopped(128 + (heard[0] if heard else signal.SIGTERM))
            if on_step and distributed.is_main():
                on_step(row)
            # The last one too: evaluation and writing the model come after it.
            ended = step + 1 == steps or _out_of_patience(metrics, best_of, patience)
            due = distributed.from_main(time.monotonic() - saved > checkpoint_seconds)
            if due or ended or best_step(metrics, best_of) == step:
                save()
                saved = time.monotonic()
        if distributed.any_rank(bool(heard)):  # heard while the last checkpoint was written
            raise Stopped(128 + (heard[0] if heard else signal.SIGTERM))
    seconds = before + time.monotonic() - began
    best = best_step(metrics, best_of)
    if len(metrics) < steps:
        _say(f"{label}: stopped after step {len(metrics)} of {steps}: {best_of} no longer improves")
    if best is not None and best + 1 < len(metrics):
        checkpoints.load_best(label, best + 1, modules)
        _say(f"{label}: the weights are those after step {best + 1}, of the lowest {best_of}")
    return Trained(metrics, seconds, best)


def best_step(metrics: list[dict[str, Any]], key: str | None) -> int | None:
    """The step whose row has the lowest `key`, the first of equals; None where no row has it."""
    scores = [(row[key], row["step"]) for row in metrics if key in row]
    return min(scores)[1] if scores else None


def _out_of_patience(metrics: list[dict[str, Any]], key: str | None, patience: int | None) -> bool:
    best = best_step(metrics, key)
    if patience is None or best is None:
        return False
    return sum(key in row for row in metrics[best + 1 :]) >= patience


def _say(text: str) -> None:
    if distributed.is_main():
        print(text, flush=True)


def _finite_row(label: str, update: Update, step: int, items: Items | None) -> dict[str, Any]:
    """Take a step. Raises `UserError` where it found, or left, a metric that is not finite."""
    try:
        row = {"step": step, **update(step)}
        wrong = [key for key, value in row.items() if not math.isfinite(value)]
        if wrong:
            raise NotFinite(wrong)
    except NotFinite as error:
        _stop(label, step, error.metrics, error.items or (items(step) if items else []))
    return row


def _require_finite_weights(
    label: str, modules: Mapping[str, nn.Module], row: dict[str, Any]
) -> None:
    """A checkpoint of weights that are not finite must not push out a good one."""
    wrong = [
        f"{name}.{key}"
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
        if parameter.requires_grad and not distributed.local(parameter).isfinite().all()
    ]
    if distributed.any_rank(bool(wrong)):
        named = ", ".join(wrong[:NAMED_ITEMS]) or "of another rank"
        _stop(label, row["step"], [f"the weights {named}"], [])


def _stop(label: str, step: int, metrics: list[str], items: list[str]) -> NoReturn:
    named = ", ".join(items[:NAMED_ITEMS])
    more = f" and {len(items) - NAMED_ITEMS} more" if len(items) > NAMED_ITEMS else ""
    last = checkpoints.newest(label)
    raise UserError(
        f"{label}: {', '.join(metrics)} is not finite at step {step}"
        + (f", whose items are {named}{more}" if items else "")
        + (
            f". The last good checkpoint is {last} (step {int(last.name)})"
            if last
            else ". The checkpoint to go back to: there is none yet"
        )
        + ". The same inputs would end here again: mend or remove those items, or lower the "
        "learning rate or the gradient norm, then run again"
    )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them (main thread only)."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    old = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    for number in old:
        signal.signal(number, lambda received, _frame: heard.append(received))
    try:
        yield heard
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """The order of `count` items in an epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """The items of optimizer step `step`: consecutive epochs, each in an order of its own.

    A batch may span two epochs, so every batch is full and every item is seen once an epoch.
    """
    first, found = step * batch_size, []
    for epoch in range(first // count, (first + batch_size - 1) // count + 1):
        low, high = max(first, epoch * count), min(first + batch_size, (epoch + 1) * count)
        found += shuffled(count, seed, epoch)[low - epoch * count : high - epoch * count]
    return found


def total_steps(count: int, batch_size: int, epochs: float) -> int:
    """Optimizer steps in so many passes over `count` items, at least one."""
    return max(1, round(count * epochs / batch_size))


def micro_batches(indices: list[int], size: int) -> Iterator[list[int]]:
    """Split an optimizer step's items."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
