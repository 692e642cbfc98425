"""Preference pairs put together for training: some of them, labelled by scores, joined.

They are pairs whose labels are known: those with `chances` are not taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from betaflow.training.dpo import ReferencedPairs


def selected(pairs: ReferencedPairs, places: Sequence[int]) -> ReferencedPairs:
    """The pairs at these places, in this order."""
    assert pairs.chances is None
    return ReferencedPairs(
        [pairs.ids[i] for i in places],
        [pairs.chosen[i] for i in places],
        [pairs.rejected[i] for i in places],
        pairs.reference_chosen[list(places)],
        pairs.reference_rejected[list(places)],
    )


def joined(first: ReferencedPairs, second: ReferencedPairs) -> ReferencedPairs:
    """The pairs of both, the first's before the second's."""
    assert first.chances is None and second.chances is None
    return ReferencedPairs(
        first.ids + second.ids,
        first.chosen + second.chosen,
        first.rejected + second.rejected,
        torch.cat([first.reference_chosen, second.reference_chosen]),
        torch.cat([first.reference_rejected, second.reference_rejected]),
    )


def turned(scores: torch.Tensor) -> list[bool]:
    """Which pairs the scores, `(2, pairs)`, turn round: those whose rejected side is the higher."""
    return (scores[1] > scores[0]).tolist()


def relabelled(pairs: ReferencedPairs, scores: torch.Tensor) -> ReferencedPairs:
    """The pairs with the completion of the higher score as the chosen one; of equals, as it was.

    Args:
        scores: `(2, pairs)`, of what is now called chosen and rejected.
    """
    assert pairs.chances is None
    turns = turned(scores)
    sides = [
        (rejected, chosen) if turn else (chosen, rejected)
        for turn, chosen, rejected in zip(turns, pairs.chosen, pairs.rejected, strict=True)
    ]
    reference = torch.stack([pairs.reference_chosen, pairs.reference_rejected])
    reference = torch.where(torch.tensor(turns, dtype=torch.bool), reference.flip(0), reference)
    return ReferencedPairs(
        pairs.ids,
        [chosen for chosen, _ in sides],
        [rejected for _, rejected in sides],
        reference[0],
        reference[1],
    )
