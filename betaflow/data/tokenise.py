"""Prompt and completion to token ids, split where the prompt's own tokens end, and cut to fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from betaflow.config import PairsSettings, Truncation


class Encoded(NamedTuple):
    """Token ids of one prompt and its completion."""

    prompt: list[int]
    completion: list[int]

    @property
    def length(self) -> int:
        """Tokens of both."""
        return len(self.prompt) + len(self.completion)


class Limits(NamedTuple):
    """Most tokens of a prompt and of a completion (EOS included), and what becomes of more."""

    truncation: Truncation
    max_prompt_tokens: int
    max_completion_tokens: int

    @classmethod
    def of(cls, settings: PairsSettings) -> Limits:
        """What the section `pairs` says of lengths; fields are named as its keys."""
        return cls(settings.truncation, settings.max_prompt_tokens, settings.max_completion_tokens)


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


def completion_text(
    tokenizer: PreTrainedTokenizerBase, prompt: list[int], completion: list[int]
) -> str:
    """What a completion's tokens add to the prompt's text; special tokens are left out.

    It is their own text, with the space before it that a decoder such as Llama 2's takes from
    what it holds to be the beginning of a text.
    """

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    alone, before, whole = text(completion), text(prompt), text(prompt + completion)
    added = whole.removeprefix(before)
    # Not so where the prompt ends within a character.
    return added if whole.startswith(before) and added.endswith(alone) else alone


def cut_pair(
    chosen: Encoded, rejected: Encoded, limits: Limits, bos: int | None
) -> tuple[Encoded, Encoded]:
    """Cut a pair to its limits, token by token: the text is never made anew.

    A prompt keeps its first (`keep_start`) or its last (`keep_end`) tokens; a completion keeps its
    first ones, so a cut completion has lost its EOS. Both prompts lose as many tokens as the longer
    one must: where a merge at the border made them differ by a token they still do, and the shorter
    is still the beginning of the longer. A leading BOS stays in front, and counts. A pair that fits
    comes back as it is, and with `drop` so does any other: to leave it out is the caller's part.

    Args:
        bos: the tokenizer's BOS, if it has one.
    """
    if limits.truncation == "drop":
        return chosen, rejected
    longest = max(len(chosen.prompt), len(rejected.prompt))
    excess = max(0, longest - limits.max_prompt_tokens)

    def cut(side: Encoded) -> Encoded:
        head = 1 if side.prompt[:1] == [bos] else 0
        body = side.prompt[head:]
        start = body[: max(0, len(body) - excess)]
        kept = body[excess:] if limits.truncation == "keep_end" else start
        return Encoded(side.prompt[:head] + kept, side.completion[: limits.max_completion_tokens])

    return cut(chosen), cut(rejected)


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
