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


def token_statistics(
    policy: nn.Module, reference: nn.Module, batch: Batch, *, differentiable: bool = False
) -> TokenStatistics:
    """Both models' distributions at each completion token, a chunk of logits at a time.

    Args:
        differentiable: `logps` can be differentiated by the policy's weights; the rest never can.
    """
    mask = batch.completion_mask[:, 1:]
    targets = batch.input_ids[:, 1:][mask]
    theirs = _logits_of(reference, batch)
    found: list[tuple[torch.Tensor, ...]] = []

    def look(part: slice, ours: torch.Tensor) -> None:
        # Sums over the vocabulary are in float32.
        with torch.no_grad(), torch.autocast(mask.device.type, enabled=False):
            found.append(_statistics(ours, theirs(part), targets[part]))

    head = head_of(policy)
    with torch.set_grad_enabled(differentiable):
        if head is None:
            ours = torch.log_softmax(token_logits(policy, batch)[0], -1)
            logps = ours.gather(-1, targets[:, None]).squeeze(-1)
            for part in _slices(len(targets), max(1, CHUNK // ours.shape[-1])):
                look(part, ours.detach()[part])
        else:
            logps = head.logps(completion_states(policy, batch), targets, look)
        taken = scatter(logps, mask)
    others = (scatter(torch.cat(parts), mask) for parts in zip(*found, strict=True))
    return TokenStatistics(taken, *others)


@torch.no_grad()
def _logits_of(model: Any, batch: Batch) -> Callable[[slice], torch.Tensor]:
    """From some of the completion tokens to their logits, float32, which may be overwritten."""
    head = head_of(model)
    if head is None:
        return token_logits(model, batch)[0].__getitem__
    return head.projector(completion_states(model, batch))


def _statistics(
    ours: torch.Tensor, theirs: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The reference's log-probabilities of `targets`, the policy's entropy, and the KL.

    Args:
        ours: log-probabilities, `(positions, vocabulary)`.
        theirs: logits, which are overwritten.
    """
    found = []
    for rows in row_slices(ours):
        one, other = ours[rows], log_softmax_(theirs[rows])
        taken = other.gather(-1, targets[rows, None]).squeeze(-1)
        chances = one.exp()
        entropy = -torch.linalg.vecdot(chances, one)
        ratios = torch.sub(one, other, out=other)
        found.append((taken, entropy, torch.linalg.vecdot(chances, ratios)))
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
