"""Log-probabilities of whole completions: the module that DPO trains and the reference pass runs.

The fast way packs completions of shared prompts into one row (`packing`) and projects to the
vocabulary at their positions only (`head`).
"""

from __future__ import annotations

from typing import Any

import torch

from betaflow.data.tokenise import Batch
from betaflow.policy.head import Head, head_of
from betaflow.policy.logps import completion_states, sequence_logps
from betaflow.policy.packed import Packed
from betaflow.policy.packing import Batches, packed_hidden


class Scorer(Batches):
    """A policy as a function from sequences to their completions' summed log-probabilities."""

    def __init__(self, policy: Any, pad: int) -> None:
        headless = "its logits are not a projection of its last hidden states"
        super().__init__(policy, pad, headless if head_of(policy) is None else None)
        self.policy = policy

    def generate(self, **options: Any) -> Any:
        """Draw from the policy; here too, so that sharded weights are whole while it runs."""
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        return self.policy.generate(**options, synced_gpus=together)

    def forward(self, batch: Packed | Batch) -> torch.Tensor:
        """Summed log-probability of each completion, nats, float32 `(sequences,)`."""
        if isinstance(batch, Packed):
            hidden, lengths = self.states(batch)
            logps = Head.of(self.policy).logps(hidden, batch.targets)
            return torch.segment_reduce(logps, "sum", lengths=lengths, initial=0.0)
        return sequence_logps(self.policy, batch)

    def states(self, batch: Packed | Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The last hidden states before each token of each completion, `(tokens, width)`.

        And how many are each completion's, `(sequences,)`; one after the other.
        """
        if isinstance(batch, Packed):
            hidden = packed_hidden(self.policy, batch)[0]
            return hidden.index_select(0, batch.predictors), batch.lengths
        return completion_states(self.policy, batch), batch.completion_mask[:, 1:].sum(-1)
