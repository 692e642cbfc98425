"""Log-probabilities of completions, and of one policy against another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from betaflow.data.tokenise import Batch, Encoded, collate
from betaflow.policy.head import CHUNK, head_of, log_softmax_, row_slices
from betaflow.policy.lanes import side_by_side
from betaflow.policy.loading import autocast, device


class TokenStatistics(NamedTuple):
    """Per-token values under a policy and a reference, `(sequences, tokens - 1)`, in nats.

    Position t is about the token at t + 1 of `input_ids`, and the distribution it is drawn from;
    zero outside the completion. `kl` is KL(policy || reference) of the two next-token
    distributions, exact over the vocabulary.
    """

    logps: torch.Tensor
    reference_logps: torch.Tensor
    entropy: torch.Tensor
    kl: torch.Tensor


def token_logits(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that predict each completion token, float32 `(completion tokens, vocabulary)`, and
    those tokens' ids."""
    chosen = batch.completion_mask[:, 1:]
    targets = batch.input_ids[:, 1:][chosen]
    head = head_of(model)
    if head is None:
        return _forward(model, batch).logits[:, :-1][chosen].float(), targets
    return head.logits(completion_states(model, batch)), targets


def _forward(model: Any, batch: Batch) -> Any:
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


def completion_states(model: Any, batch: Batch) -> torch.Tensor:
    """The last hidden states before each completion token, `(completion tokens, width)`."""
    hidden: torch.Tensor = _forward(model.base_model, batch).last_hidden_state
    return hidden[:, :-1][batch.completion_mask[:, 1:]]


def token_logps(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Log-probability of each completion token, nats, float32 `(sequences, tokens - 1)`."""
    mask = batch.completion_mask[:, 1:]
    head = head_of(model)
    if head is None:
        logits, targets = token_logits(model, batch)
        logps = -cross_entropy(logits, targets, reduction="none")
    else:
        logps = head.logps(completion_states(model, batch), batch.input_ids[:, 1:][mask])
    return scatter(logps, mask)


def sequence_logps(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Summed log-probability of each completion, in nats, float32 `(sequences,)`."""
    return token_logps(model, batch).sum(-1)


@torch.no_grad()
def token_statistics(policy: nn.Module, reference: nn.Module, batch: Batch) -> TokenStatistics:
    """Both models' distributions at each completion token, a chunk of logits at a time."""
    mask = batch.completion_mask[:, 1:]
    targets = batch.input_ids[:, 1:][mask]
    ours, vocabulary = _logits_of(policy, batch)
    theirs, _ = _logits_of(reference, batch)
    found = []
    for part in _slices(len(targets), max(1, CHUNK // vocabulary)):
        logits = ours(part), theirs(part)
        with torch.autocast(mask.device.type, enabled=False):  # sums over the vocabulary in float32
            found.append(_statistics(*logits, targets[part]))
    return TokenStatistics(*(scatter(torch.cat(parts), mask) for parts in zip(*found, strict=True)))


def _logits_of(model: Any, batch: Batch) -> tuple[Callable[[slice], torch.Tensor], int]:
    """A function from some of the completion tokens to their logits, and the vocabulary's size."""
    head = head_of(model)
    if head is None:
        logits, _ = token_logits(model, batch)
        return logits.__getitem__, logits.shape[-1]
    states = completion_states(model, batch)
    return lambda part: head.logits(states[part]), head.weight.shape[0]


def _statistics(
    ours: torch.Tensor, theirs: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Of two models' logits, `(positions, vocabulary)`, which are overwritten."""
    found = []
    for rows in row_slices(ours):
        one, other = log_softmax_(ours[rows]), log_softmax_(theirs[rows])
        taken = (each.gather(-1, targets[rows, None]).squeeze(-1) for each in (one, other))
        chances = one.exp()
        entropy = -torch.linalg.vecdot(chances, one)
        found.append((*taken, entropy, torch.linalg.vecdot(chances, one.sub_(other))))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, max(count, 1), size)]


def scatter(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Put one value per true position of `mask` back in place, zero elsewhere."""
    out = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    return out.masked_scatter(mask, values)


def by_length(sequences: list[Encoded], size: int) -> list[list[int]]:
    """Indices of `sequences` in groups of `size` of like length, so that little is padding."""
    order = sorted(range(len(sequences)), key=lambda i: (sequences[i].length, i))
    return [order[i : i + size] for i in range(0, len(order), size)]


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

    @torch.no_grad()
    def fill(group: list[int]) -> None:
        batch = collate([sequences[i] for i in group], pad).to(device())
        with autocast(precision):
            found[group] = compute(batch).cpu()

    side_by_side([partial(fill, group) for group in by_length(sequences, batch_size)])
    return found
