"""Run the stages that are out of date as Prefect tasks, in parallel within limits."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Cancelled

from betaflow.config import RunSettings
from betaflow.errors import UserError
from flows.display import Display, Meter, is_chatter, read_progress
from flows.graph import Graph, Stage, closing, waiting_on
from flows.stages import (
    GRACE,
    KILL_WAIT,
    StageFailed,
    StageStopped,
    end_processes,
    of_workspace,
    run_stage,
)

LOG_PROGRESS_EVERY = 15.0  # seconds between two lines of a stage's progress in Prefect's log
AGAIN = "running it again goes on from there"


class StagesFailed(Exception):
    """One message for the run: which stages failed, with their last lines, and what did not run."""


class Slots:
    """Places to run in: for CPU stages a count, for device stages the ids of the GPUs."""

    def __init__(self, settings: RunSettings) -> None:
        self.free: dict[str, list[str]] = {"cpu": [""] * settings.jobs}
        if settings.gpus:
            self.free["device"] = _gpu_ids(settings.gpus)
        self.total = {kind: len(places) for kind, places in self.free.items()}

    def kind(self, resource: str) -> str:
        """Where a stage of this resource runs: without GPUs, all on the CPU."""
        return resource if resource in self.free else "cpu"

    def take(self, resource: str, count: int = 1) -> tuple[str, str] | None:
        """Free places for a stage, as (kind, GPU ids by commas), or None.

        A stage of more processes than there are CPU places takes them all.
        """
        kind = self.kind(resource)
        count = min(count, self.total[kind])
        if len(self.free[kind]) < count:
            return None
        taken, self.free[kind] = self.free[kind][:count], self.free[kind][count:]
        return kind, ",".join(taken)

    def require(self, stage: Stage) -> None:
        """Raise `UserError` where a stage needs more GPUs than there are."""
        most = self.total.get(stage.resource, stage.processes)
        if stage.resource == "device" and stage.processes > most:
            raise UserError(
                f"{stage.name} runs in {stage.processes} processes and needs as many GPUs, but "
                f"run.gpus is {most}; raise run.gpus, or lower the stage's `processes`"
            )

    def give_back(self, slot: tuple[str, str]) -> None:
        """Make places free again."""
        kind, ids = slot
        self.free[kind] += ids.split(",")


def _gpu_ids(count: int) -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = [str(n) for n in range(count)] if visible is None else visible.split(",")
    if len(ids) < count or "" in ids:
        raise UserError(f"run.gpus is {count}, but CUDA_VISIBLE_DEVICES is {visible!r}")
    return ids[:count]


def run_all(
    workspace: Path, graph: Graph, dirty: set[str], settings: RunSettings, display: Display
) -> None:
    """Submit stages as their upstream ends and slots are free, until none is left.

    A failed stage takes along only what needs it. Raises `StagesFailed`. On an interruption
    (Ctrl-C, cancellation) every stage is ended before the exception goes on up.
    """
    stop = threading.Event()
    stage_task = _stage_task(workspace, stop, display)
    slots = Slots(settings)
    for name in dirty:
        slots.require(graph[name])
    needed_by = waiting_on(graph)
    # First what most others wait for; between equals, as in dvc.yaml.
    waiting = sorted((n for n in graph if n in dirty), key=lambda name: -needed_by[name])
    last = closing(graph)
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    futures: dict[str, PrefectFuture[Any]] = {}
    taken: dict[str, tuple[str, str]] = {}
    lost: dict[str, str] = {}  # stage -> its failure, or "" where it was not run

    def submit(name: str, gpu: str) -> None:
        upstream = [futures[needed] for needed in graph[name].upstream if needed in futures]
        futures[name] = stage_task.submit(name, gpu, wait_for=upstream)
        futures[name].add_done_callback(lambda _: ended.put(name))

    try:
        while waiting or taken:
            pending = {*waiting, *taken}
            ready = [name for name in waiting if pending.isdisjoint(graph[name].upstream)]
            for name in in_turn(ready, graph, last, slots, needed_by):
                if any(needed in lost for needed in graph[name].upstream):
                    lost[name] = ""
                    submit(name, "")  # Prefect shows it as not ready
                elif slot := slots.take(graph[name].resource, graph[name].processes):
                    taken[name] = slot
                    submit(name, slot[1].strip(","))
                else:
                    continue
                waiting.remove(name)
            if not taken:
                continue
            name = ended.get()
            if name in taken:
                slots.give_back(taken.pop(name))
                if failure := _failure(futures[name]):
                    lost[name] = failure
    except BaseException:
        stop.set()
        display.say("stopping the stages ...", "yellow")
        _wait_until_ended(workspace, [futures[name] for name in taken])
        raise
    if lost:
        raise StagesFailed(_message(lost))


def in_turn(
    ready: list[str], graph: Graph, last: set[str], slots: Slots, needed_by: Mapping[str, int]
) -> list[str]:
    """`ready` in the order to be run: what closes an arm first, while there is enough else to do.

    Kept for the end, they'd queue for DVC's lock, with no stage beside them that computes. But what
    more wait for than for an arm, such as the reward model, goes before them.

    Args:
        last: of `closing`.
        needed_by: of `waiting_on`.
    """
    kinds = {name: slots.kind(graph[name].resource) for name in ready}
    others = Counter(kinds[name] for name in ready if name not in last)
    enough = {kind for kind, total in slots.total.items() if others[kind] >= total}
    arm = min((needed_by[name] for name in graph if name not in last), default=0)

    def turn(name: str) -> int:
        if name in last:
            return 1 if kinds[name] in enough else 2
        return 0 if needed_by[name] > arm else 2

    return sorted(ready, key=turn)


def _stage_task(workspace: Path, stop: threading.Event, display: Display) -> Any:
    """The Prefect task that runs one stage; no cache but DVC's, no retry but for its lock."""

    def lock_was_held(_task: Any, _run: Any, state: Any) -> bool:
        # What failed once fails again; only another DVC process's lock goes away by itself.
        with suppress(Exception):
            error = state.result(raise_on_failure=False)
            return isinstance(error, StageFailed) and error.locked and not stop.is_set()
        return False

    @task(
        name="stage",
        task_run_name="{stage}",
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=4,
        retry_delay_seconds=[1, 2, 4, 8],
        retry_condition_fn=lock_was_held,
    )
    def run(stage: str, gpu: str) -> Any:
        began = time.monotonic()
        display.started(stage)
        mark = "failed"
        try:
            variables = {
                "CUDA_VISIBLE_DEVICES": gpu
            }  # empty: no GPU for a stage that was given none
            run_stage(stage, workspace, stop, _listener(stage, display), variables)
            mark = "done"
        except StageFailed as error:
            mark = "locked" if error.locked else mark
            raise
        except StageStopped:
            mark = "stopped"
            return Cancelled(message=f"Stopped; {AGAIN}")
        finally:
            display.finished(stage, mark, time.monotonic() - began)

    return run


def _listener(stage: str, display: Display) -> Callable[[str], None]:
    """What is done with each line of a stage: shown, and put into Prefect's log."""
    logger = get_run_logger()
    meter: Meter | None = None
    logged = time.monotonic()

    def on_line(line: str) -> None:
        nonlocal meter, logged
        found = read_progress(line, meter)
        if found is None:
            if not is_chatter(line):
                logger.info("%s", line)
                display.say(f"  {stage} | {line}", "dim")
            return
        meter = found
        display.progressed(stage, meter)
        if time.monotonic() - logged > LOG_PROGRESS_EVERY:
            logged = time.monotonic()
            logger.info("%s, %s", line.removeprefix("@progress "), meter.pace)

    return on_line


def _failure(future: PrefectFuture[Any]) -> str:
    """Why a finished task did not complete, or an empty string."""
    future.wait()
    state = future.state
    if state.is_completed():
        return ""
    error = state.result(raise_on_failure=False) if state.is_failed() else None
    return str(error or state.message or state.name)


def _message(lost: dict[str, str]) -> str:
    failed = {name: why for name, why in lost.items() if why}
    skipped = [name for name, why in lost.items() if not why]
    parts = [f"{len(failed)} of the stages failed: {', '.join(failed)}", *failed.values()]
    if skipped:
        parts.append(f"not run, as they need one of those: {', '.join(skipped)}")
    return "\n".join(parts)


def _wait_until_ended(workspace: Path, futures: list[PrefectFuture[Any]]) -> None:
    """Wait while each stage's own thread ends it; on a second Ctrl-C, or too late, kill."""
    until = time.monotonic() + GRACE + KILL_WAIT
    try:
        for future in futures:
            future.wait(timeout=max(0.0, until - time.monotonic()))
    finally:
        end_processes(lambda: of_workspace(workspace), grace=0)
