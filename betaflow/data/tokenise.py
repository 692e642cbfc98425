"""Prompt and completion to token ids, split where the prompt's own tokens end."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """Token ids of one prompt and its completion."""

    prompt: list[int]
    completion: list[int]

    @property
    def length(self) -> int:
        """Tokens of both."""
        return len(self.prompt) + len(self.completion)


class Batch(NamedTuple):
    """Right-padded sequences; all tensors `(sequences, tokens)`.

    `completion_mask` is true where `input_ids` is a completion's token (EOS included), by
    position: a pad token that equals EOS is never mistaken for it.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    completion_mask: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(*(tensor.to(device) for tensor in self))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a prompt, with the BOS that the tokenizer adds (if it adds one)."""
    ids: list[int] = tokenizer(prompt).input_ids
    return ids


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, finished: bool = True
) -> Encoded:
    """Tokenise prompt and completion together and split on the common token prefix.

    Tokenising the two apart and gluing them differs from how the text is tokenised whole when a
    token would merge across the border: such a token belongs to the completion here. EOS is
    added to a finished completion (unless its text already ends with it).
    """
    alone = encode_prompt(tokenizer, prompt)
    whole: list[int] = tokenizer(prompt + completion).input_ids
    border = 0
    while border < min(len(alone), len(whole)) and alone[border] == whole[border]:
        border += 1
    tail = whole[border:]
    eos = tokenizer.eos_token_id
    if finished and (not tail or tail[-1] != eos):
        tail = [*tail, eos]
    return Encoded(whole[:border], tail)


def collate(sequences: list[Encoded], pad: int) -> Batch:
    """Pad sequences on the right into one batch."""
    longest = max(s.length for s in sequences)
    ids = torch.full((len(sequences), longest), pad, dtype=torch.long)
    attention = torch.zeros_like(ids)
    completion = torch.zeros_like(ids, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        start, end = len(sequence.prompt), sequence.length
        ids[row, :end] = torch.tensor(sequence.prompt + sequence.completion)
        attention[row, :end] = 1
        completion[row, start:end] = True
    return Batch(ids, attention, completion)
