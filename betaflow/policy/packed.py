"""Completions of shared prompts packed into one row: no padding, and no token computed twice.

A tree is a prompt (the prefix, its tokens computed once) and its completions (the branches),
laid out one after the other; trees follow each other. Positions start again with every tree,
and every branch goes on from the end of its prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from betaflow.data.tokenise import Encoded

Tree = tuple[int, tuple[int, ...]]  # tokens of the prefix, tokens of each branch


class Packed(NamedTuple):
    """Trees in one row. `tokens`: all of them; `targets`: the completions' tokens.

    A target's distribution is read from the hidden state of the token before it, which is the
    prefix's last one for a branch's first. `ends` are where sequences end.
    """

    input_ids: torch.Tensor  # (1, tokens)
    position_ids: torch.Tensor  # (1, tokens)
    predictors: torch.Tensor  # (targets,), an index among tokens
    targets: torch.Tensor  # (targets,), token ids
    lengths: torch.Tensor  # (sequences,), targets of each
    ends: torch.Tensor  # (sequences,), an index among tokens
    trees: tuple[Tree, ...]

    def to(self, device: torch.device) -> Packed:
        """The same on a device."""
        moved = {
            name: tensor.to(device, non_blocking=True)
            for name, tensor in self._asdict().items()
            if name != "trees"
        }
        return self._replace(**moved)


def shared_prefix(sequences: Sequence[Encoded]) -> int:
    """How many first tokens all these sequences share, completions left out."""
    first = sequences[0].prompt
    shared = min(len(s.prompt) for s in sequences)
    while any(s.prompt[:shared] != first[:shared] for s in sequences[1:]):
        shared -= 1
    return shared


def tree_tokens(sequences: Sequence[Encoded]) -> int:
    """Tokens of the tree of these sequences."""
    return sum(s.length for s in sequences) - (len(sequences) - 1) * shared_prefix(sequences)


def pack(groups: Sequence[Sequence[Encoded]]) -> Packed:
    """Lay out groups of sequences, each group as one tree; sequences keep their order.

    A completion's token at position 0 (an empty prompt) has nothing to predict it and is no
    target.
    """
    ids: list[int] = []
    positions: list[int] = []
    predictors: list[int] = []
    targets: list[int] = []
    lengths: list[int] = []
    ends: list[int] = []
    trees: list[Tree] = []
    for group in groups:
        root, prefix = len(ids), shared_prefix(group)
        ids += group[0].prompt[:prefix]
        positions += range(prefix)
        branches = []
        for prompt, completion in group:
            start = len(ids)
            ids += prompt[prefix:] + completion
            branches.append(len(ids) - start)
            positions += range(prefix, prefix + branches[-1])
            ends.append((len(ids) if branches[-1] else root + prefix) - 1)
            first = start + len(prompt) - prefix  # of the completion's tokens
            before = list(range(first - 1, len(ids) - 1))
            if first == start:
                before[:1] = [root + prefix - 1] if prefix else []
            predictors += before[: len(completion)]
            lengths.append(min(len(before), len(completion)))
            targets += completion[len(completion) - lengths[-1] :]
        trees.append((prefix, tuple(branches)))
    return Packed(
        torch.tensor([ids]),
        torch.tensor([positions]),
        torch.tensor(predictors, dtype=torch.long),
        torch.tensor(targets, dtype=torch.long),
        torch.tensor(lengths),
        torch.tensor(ends),
        tuple(trees),
    )
