"""KL(policy || reference) along sampled completions, from full-vocabulary logits at T = 1."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from betaflow.data.tokenise import Batch, Encoded, collate
from betaflow.policy.loading import autocast, device
from betaflow.policy.logps import by_length, token_statistics


class SequenceKL(NamedTuple):
    """Per completion, `(sequences,)`, nats.

    `kl` sums over time the exact KL between the two next-token distributions at each state. For
    completions drawn from the policy at T = 1 its mean is an unbiased estimate of the sequence
    KL, with less variance than the mean of `policy_logps - reference_logps` (Rao-Blackwell).
    """

    kl: torch.Tensor
    policy_logps: torch.Tensor
    reference_logps: torch.Tensor


def batch_kl(policy: nn.Module, reference: nn.Module, batch: Batch) -> SequenceKL:
    """`SequenceKL` of one batch."""
    tokens = token_statistics(policy, reference, batch)
    return SequenceKL(*(t.sum(-1) for t in (tokens.kl, tokens.logps, tokens.reference_logps)))


@torch.no_grad()
def sequence_kl(
    policy: nn.Module,
    reference: nn.Module,
    sequences: list[Encoded],
    *,
    pad: int,
    batch_size: int,
    precision: str,
) -> SequenceKL:
    """`SequenceKL` of any number of completions, on the CPU, in their order."""
    found = SequenceKL(*(torch.zeros(len(sequences)) for _ in SequenceKL._fields))
    for group in by_length(sequences, batch_size):
        batch = collate([sequences[i] for i in group], pad).to(device())
        with autocast(precision):
            values = batch_kl(policy, reference, batch)
        for store, value in zip(found, values, strict=True):
            store[group] = value.cpu()
    return found
