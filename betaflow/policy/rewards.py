"""Scores of a scalar-headed model (reward model, critic)."""

from __future__ import annotations

import torch
from torch import nn

from betaflow.data.tokenise import Batch, Encoded
from betaflow.policy.logps import in_batches


def token_values(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The head's output at every token, float32 `(sequences, tokens)`.

    The head is computed in float32 under autocast too: a score in bfloat16 has steps of 1/64 at 2.
    """
    hidden = model.base_model(  # type: ignore[operator]
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).last_hidden_state
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
