"""What a batch of preference pairs is made of: single pairs, or prompts with all their pairs.

Of k completions of a prompt k (k - 1) / 2 pairs can be made. Taken together each completion is
computed once for all of its pairs instead of k - 1 times, and no completion of a prompt is seen
again in the same pass (Ouyang et al. 2022, section 3.5, for reward models).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from betaflow.data.tokenise import Encoded

BatchOf = Literal["pairs", "prompts"]


class Tree(NamedTuple):
    """Pairs that share a prompt, each of their completions once.

    `sides`: places in `sequences` of every pair's chosen and rejected completion, by turns.
    """

    pairs: list[int]
    sequences: list[Encoded]
    sides: list[int]


def units(chosen: Sequence[Encoded], batch_of: BatchOf) -> list[list[int]]:
    """The indices of pairs that stay together: each alone, or those of a prompt.

    Args:
        chosen: one sequence of each pair.

    Returns:
        Prompts in the order of their first pair.
    """
    if batch_of == "pairs":
        return [[index] for index in range(len(chosen))]
    of_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, sequence in enumerate(chosen):
        of_prompt.setdefault(tuple(sequence.prompt), []).append(index)
    return list(of_prompt.values())


def tree(unit: Sequence[int], chosen: Sequence[Encoded], rejected: Sequence[Encoded]) -> Tree:
    """The sequences of pairs that share a prompt, the first of each kind in its place."""
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    sequences: list[Encoded] = []
    sides = []
    for sequence in (side[index] for index in unit for side in (chosen, rejected)):
        key = tuple(sequence.prompt), tuple(sequence.completion)  # a merge can shorten a prompt
        place = found.setdefault(key, len(sequences))
        if place == len(sequences):
            sequences.append(sequence)
        sides.append(place)
    return Tree(list(unit), sequences, sides)


def joined_sides(trees: Sequence[Tree]) -> list[int]:
    """`sides` of many trees, as places in the row of all their sequences."""
    found, first = [], 0
    for one in trees:
        found += [first + place for place in one.sides]
        first += len(one.sequences)
    return found
