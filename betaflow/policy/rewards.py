"""Scores of a scalar-headed model (reward model, critic)."""

from __future__ import annotations

import torch
from torch import nn

from betaflow.data.tokenise import Batch, Encoded, collate
from betaflow.policy.loading import autocast, device
from betaflow.policy.logps import by_length


def token_values(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The head's output at every token, float32 `(sequences, tokens)`."""
    hidden = model.base_model(  # type: ignore[operator]
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).last_hidden_state
    return model.score(hidden).squeeze(-1).float()  # type: ignore[operator]


def sequence_scores(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The head's output at each sequence's last real token, float32 `(sequences,)`."""
    last = batch.attention_mask.sum(-1, keepdim=True) - 1
    return token_values(model, batch).gather(-1, last).squeeze(-1)


@torch.no_grad()
def all_sequence_scores(
    model: nn.Module, sequences: list[Encoded], *, pad: int, batch_size: int, precision: str
) -> torch.Tensor:
    """`sequence_scores` of any number of sequences, on the CPU, in their order."""
    found = torch.zeros(len(sequences))
    for group in by_length(sequences, batch_size):
        batch = collate([sequences[i] for i in group], pad).to(device())
        with autocast(precision):
            found[group] = sequence_scores(model, batch).cpu()
    return found
