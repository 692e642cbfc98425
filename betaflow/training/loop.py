"""The training loop that every method shares.

What a step does is a function of the step's number and the weights alone (batches are drawn by
(seed, step)), so a run that is stopped and resumed takes the same steps as one that is not.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from betaflow.errors import UserError
from betaflow.progress import track
from betaflow.training import checkpoints

Update = Callable[[int], dict[str, float]]


class Trained(NamedTuple):
    """A metrics row for each step, and the seconds that the steps took."""

    metrics: list[dict[str, Any]]
    seconds: float


class Stopped(SystemExit):
    """SIGINT or SIGTERM was heard; a checkpoint has been saved. Exits with 128 + the signal."""


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
) -> Trained:
    """Call `update(step)` for every step that no checkpoint holds, and keep what it returns.

    Args:
        label: the run's name, for progress and checkpoints.
        update: takes one step, 0-based, and returns its metrics.
        modules: what is trained, by name.
        fingerprint: of the run's inputs; a checkpoint of other inputs is not used.
        show: metrics to show with the progress.
        on_step: called with each new metrics row.

    Raises:
        UserError: a metric is not finite; names the step.
        Stopped: a signal was heard, after a checkpoint was saved.
    """
    found = checkpoints.resume(label, fingerprint, modules, optimizer)
    metrics = list(found.metrics) if found else []
    before = found.seconds if found else 0.0
    began = saved = time.monotonic()
    if found:
        print(f"{label}: resumed at step {found.step} of {steps}", flush=True)

    def save() -> None:
        spent = before + time.monotonic() - began
        progress = checkpoints.Progress(len(metrics), spent, metrics)
        checkpoints.save(label, fingerprint, modules, optimizer, progress)

    with _signals() as heard, track(steps, label, start=len(metrics)) as progress:
        for step in range(len(metrics), steps):
            row = {"step": step, **update(step)}
            _require_finite(label, row)
            metrics.append(row)
            progress.update(step + 1, **{key: row[key] for key in show})
            if heard:
                save()
                print(
                    f"{label}: saved step {step + 1}; the next run goes on from there", flush=True
                )
                raise Stopped(128 + heard[0])
            if on_step:
                on_step(row)
            # The last one too: evaluation and writing the model come after it.
            if time.monotonic() - saved > checkpoint_seconds or step + 1 == steps:
                save()
                saved = time.monotonic()
    return Trained(metrics, before + time.monotonic() - began)


def _require_finite(label: str, row: dict[str, Any]) -> None:
    wrong = [key for key, value in row.items() if not math.isfinite(value)]
    if wrong:
        raise UserError(
            f"{label}: {', '.join(wrong)} is not finite at step {row['step']}; "
            "lower the learning rate or the gradient norm, then run again"
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
