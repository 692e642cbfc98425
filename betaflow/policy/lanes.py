"""Pieces of work side by side on the CPU, each with its share of torch's threads.

A small model's operations are too short to be worth splitting: two threads, each with a batch of
its own, get through more of them than two threads on every operation of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from betaflow.policy.loading import device

T = TypeVar("T")


def side_by_side(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """What each of `jobs` returns, in their order; as many at once as torch has threads.

    With one thread, or on a GPU, they run one after the other. What a job computes does not depend
    on the others: each works on its own tensors. Grad mode, inference mode and autocast are a
    thread's own, so a job sets those it wants.

    Raises:
        Exception: the first that a job raised, in their order, once none runs any more.
    """
    threads = torch.get_num_threads()
    lanes = min(threads, len(jobs))
    if lanes < 2 or device().type != "cpu":
        return [job() for job in jobs]
    share = threads // lanes
    try:
        with ThreadPoolExecutor(lanes, "lane", torch.set_num_threads, (share,)) as pool:
            return list(pool.map(lambda job: job(), jobs))
    finally:
        torch.set_num_threads(threads)  # of this thread, and of those that others start
