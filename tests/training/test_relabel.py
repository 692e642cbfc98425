"""Pairs put together for training: selected, labelled by scores, joined."""

from __future__ import annotations

import torch

from betaflow.data.tokenise import Encoded
from betaflow.training.dpo import ReferencedPairs
from betaflow.training.relabel import joined, relabelled, selected

PAIRS = ReferencedPairs(
    ["a", "b", "c"],
    [Encoded([1], [10 + n]) for n in range(3)],
    [Encoded([1], [20 + n]) for n in range(3)],
    torch.tensor([-1.0, -2.0, -3.0]),
    torch.tensor([-10.0, -20.0, -30.0]),
)


def test_the_higher_score_is_chosen_and_of_equals_nothing_changes() -> None:
    found = relabelled(PAIRS, torch.tensor([[1.0, 0.0, 5.0], [0.0, 1.0, 5.0]]))
    assert found.ids == PAIRS.ids
    assert [side.completion for side in found.chosen] == [[10], [21], [12]]
    assert [side.completion for side in found.rejected] == [[20], [11], [22]]
    assert found.reference_chosen.tolist() == [-1.0, -20.0, -3.0]
    assert found.reference_rejected.tolist() == [-10.0, -2.0, -30.0]


def test_a_selection_and_its_rest_join_to_the_whole() -> None:
    first, rest = selected(PAIRS, [0]), selected(PAIRS, [1, 2])
    assert (first.ids, rest.ids) == (["a"], ["b", "c"])
    whole = joined(first, rest)
    assert whole.ids == PAIRS.ids
    assert whole.chosen == PAIRS.chosen and whole.rejected == PAIRS.rejected
    assert torch.equal(whole.reference_chosen, PAIRS.reference_chosen)
    assert torch.equal(whole.reference_rejected, PAIRS.reference_rejected)


def test_no_pair_at_all_is_fine() -> None:
    """All prompts are labelled, and there are no others: nothing is fresh."""
    nothing = relabelled(selected(PAIRS, []), torch.zeros(2, 0))
    assert joined(PAIRS, nothing).ids == PAIRS.ids
