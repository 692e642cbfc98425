"""Packing documents into blocks of equal length."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Block(NamedTuple):
    """Packed documents; all `(tokens,)`.

    `position_ids` start again at 0 in every document, which is how transformers keeps the
    documents of a block from attending to each other. `labels` is -100 on padding and on each
    document's first token, which nothing before it may predict.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor


def chunk(documents: list[list[int]], block: int) -> list[list[int]]:
    """Cut documents longer than a block into pieces."""
    return [d[i : i + block] for d in documents for i in range(0, len(d), block)]


def first_fit(lengths: list[int], block: int) -> list[list[int]]:
    """Put documents into bins of `block` tokens, longest first (first-fit decreasing).

    Bins are kept by room left, so that a document finds its bin in O(block).
    """
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    for document in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        need = lengths[document]
        room = next((r for r in range(need, block + 1) if by_room.get(r)), None)
        if room is None:
            bins.append([])
            place, room = len(bins) - 1, block
        else:
            place = by_room[room].pop()
        bins[place].append(document)
        by_room.setdefault(room - need, []).append(place)
    return bins


def pack(documents: list[list[int]], block: int, pad: int, *, together: bool = True) -> list[Block]:
    """Pack token lists into blocks. With `together=False` a block holds one document."""
    pieces = [piece for piece in chunk(documents, block) if len(piece) > 1]
    lengths = [len(piece) for piece in pieces]
    bins = first_fit(lengths, block) if together else [[i] for i in range(len(pieces))]
    return [_block([pieces[i] for i in group], block, pad) for group in bins]


def _block(pieces: list[list[int]], block: int, pad: int) -> Block:
    ids = torch.full((block,), pad, dtype=torch.long)
    positions = torch.zeros(block, dtype=torch.long)
    labels = torch.full((block,), -100, dtype=torch.long)
    at = 0
    for piece in pieces:
        end = at + len(piece)
        ids[at:end] = torch.tensor(piece)
        positions[at:end] = torch.arange(len(piece))
        labels[at + 1 : end] = ids[at + 1 : end]
        at = end
    positions[at:] = torch.arange(block - at)
    return Block(ids, positions, labels)
