"""Log-probabilities of completions, and of one policy against another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from betaflow.data.tokenise import Batch, Encoded, collate
from betaflow.policy.head import head_of
from betaflow.policy.loading import autocast, device


class TokenStatistics(NamedTuple):
    """Per-token values, `(sequences, tokens - 1)`, zero outside the completion.

    Position t is about the token at t + 1 of `input_ids`.
    """

    logps: torch.Tensor
    entropy: torch.Tensor
    mask: torch.Tensor


def token_logits(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that predict each completion token, float32 `(completion tokens, vocabulary)`, and
    those tokens' ids."""
    chosen = batch.completion_mask[:, 1:]
    targets = batch.input_ids[:, 1:][chosen]
    head = head_of(model)
    if head is None:
        return _forward(model, batch).logits[:, :-1][chosen].float(), targets
    return head.logits(_states(model, batch, chosen)), targets


def _forward(model: Any, batch: Batch) -> Any:
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


def _states(model: Any, batch: Batch, chosen: torch.Tensor) -> torch.Tensor:
    """Last hidden states at the chosen positions, `(chosen, width)`."""
    hidden: torch.Tensor = _forward(model.base_model, batch).last_hidden_state
    return hidden[:, :-1][chosen]


def sequence_logps(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Summed log-probability of each completion, in nats, float32 `(sequences,)`."""
    mask = batch.completion_mask[:, 1:]
    head = head_of(model)
    if head is None:
        logits, targets = token_logits(model, batch)
        logps = -cross_entropy(logits, targets, reduction="none")
    else:
        logps = head.logps(_states(model, batch, mask), batch.input_ids[:, 1:][mask])
    return scatter(logps, mask).sum(-1)


def token_statistics(model: nn.Module, batch: Batch) -> TokenStatistics:
    """Log-probability of each completion token and the entropy of its distribution, in nats."""
    logits, targets = token_logits(model, batch)
    distribution = torch.log_softmax(logits, -1)
    mask = batch.completion_mask[:, 1:]
    logps = distribution.gather(-1, targets[:, None]).squeeze(-1)
    entropy = -(distribution.exp() * distribution).sum(-1)
    return TokenStatistics(scatter(logps, mask), scatter(entropy, mask), mask)


def scatter(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Put one value per true position of `mask` back in place, zero elsewhere."""
    out = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    return out.masked_scatter(mask, values)


def by_length(sequences: list[Encoded], size: int) -> list[list[int]]:
    """Indices of `sequences` in groups of `size` of like length, so that little is padding."""
    order = sorted(range(len(sequences)), key=lambda i: (sequences[i].length, i))
    return [order[i : i + size] for i in range(0, len(order), size)]


@torch.no_grad()
def in_batches(
    compute: Callable[[Batch], torch.Tensor],
    sequences: list[Encoded],
    *,
    pad: int,
    batch_size: int,
    precision: str,
) -> torch.Tensor:
    """`compute`, one value a sequence, for any number of sequences: on the CPU, in their order."""
    found = torch.zeros(len(sequences))
    for group in by_length(sequences, batch_size):
        batch = collate([sequences[i] for i in group], pad).to(device())
        with autocast(precision):
            found[group] = compute(batch).cpu()
    return found
