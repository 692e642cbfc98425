"""Scores of a scalar-headed model (reward model, critic)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from betaflow.data.tokenise import Batch, Encoded
from betaflow.policy.logps import in_batches
from betaflow.policy.packed import Packed
from betaflow.policy.packing import Batches, packed_hidden


class RewardScorer(Batches):
    """A reward model as a function from sequences to their scores."""

    def __init__(self, model: Any, pad: int) -> None:
        super().__init__(model, pad)
        self.model = model

    def forward(self, batch: Packed | Batch) -> torch.Tensor:
        """The head's output at each sequence's last token, float32 `(sequences,)`."""
        if isinstance(batch, Packed):
            hidden = packed_hidden(self.model, batch)[0]
            return _head(self.model, hidden.index_select(0, batch.ends))
        return sequence_scores(self.model, batch)


def token_values(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The head's output at every token, float32 `(sequences, tokens)`."""
    hidden = model.base_model(  # type: ignore[operator]
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).last_hidden_state
    return _head(model, hidden)


def _head(model: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """In float32 under autocast too: a score in bfloat16 has steps of 1/64 at 2."""
    with torch.autocast(hidden.device.type, enabled=False):
        return model.score(hidden.float()).squeeze(-1)  # type: ignore[operator]


def sequence_scores(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The head's output at each sequence's last real token, float32 `(sequences,)`."""
    last = batch.attention_mask.sum(-1, keepdim=True) - 1
    return token_values(model, batch).gather(-1, last).squeeze(-1)


def all_sequence_scores(
    model: nn.Module, sequences: list[Encoded], *, pad: int, batch_size: int, precision: str
) -> torch.Tensor:
    """`sequence_scores` of any number of sequences, without gradients."""
    return in_batches(
        lambda batch: sequence_scores(model, batch),
        sequences,
        pad=pad,
        batch_size=batch_size,
        precision=precision,
    )
