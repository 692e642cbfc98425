"""Who computes what in a step: every process its share of the groups, in as many batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from betaflow.policy.packing import Group


def share(
    scorer: Any, groups: Sequence[Group], budget: int, rank: int, world: int
) -> list[tuple[list[int], bool]]:
    """Batches of this process: indices of groups, and whether they count.

    Sharded processes must take as many forward passes as each other. One with fewer batches
    repeats one that does not count.

    Args:
        budget: tokens a batch, padding included.
    """
    costs = [scorer.cost(group) for group in groups]
    loads = [0] * world
    owned: list[list[int]] = [[] for _ in range(world)]
    for i in sorted(range(len(groups)), key=lambda i: (-costs[i], i)):
        least = loads.index(min(loads))
        loads[least] += costs[i]
        owned[least].append(i)
    batches = [
        [[mine[place] for place in bin] for bin in scorer.bins([groups[i] for i in mine], budget)]
        for mine in owned
    ]
    found = [(batch, True) for batch in batches[rank]]
    spare = (batches[rank] or batches[0])[0]
    return found + [(spare, False)] * (max(map(len, batches)) - len(found))
