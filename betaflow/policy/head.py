"""From hidden states to log-probabilities, a chunk of positions at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from betaflow.policy.linear import linear

# Logits in memory at once, float32 values (128 MiB). More positions than fit are computed in
# chunks, and computed again in the backward pass.
CHUNK = 32 * 2**20


class Head(NamedTuple):
    """The vocabulary projection: logits = cap tanh((W h + b) / cap), or without the cap."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    cap: float | None

    @classmethod
    def of(cls, model: Any) -> Head:
        """The projection of a causal language model."""
        output: nn.Module = model.get_output_embeddings()
        cap = getattr(model.config, "final_logit_softcapping", None)
        return cls(output.weight, getattr(output, "bias", None), cap)  # type: ignore[arg-type]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`(positions, width)` to float32 `(positions, vocabulary)`."""
        found = linear(hidden, self.weight, self.bias).float()
        return found if self.cap is None else self.cap * torch.tanh(found / self.cap)

    def logps(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Log-probability of each target, nats, float32 `(positions,)`."""
        rows = max(1, CHUNK // self.weight.shape[0])
        if len(targets) <= rows:
            return self._logps(hidden, targets)
        chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([self._logps(*chunk) for chunk in chunks])
        return torch.cat([checkpoint(self._logps, *chunk, use_reentrant=False) for chunk in chunks])

    def _logps(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return -cross_entropy(self.logits(hidden), targets, reduction="none")


def head_of(model: Any) -> Head | None:
    """The projection, or None where the model does something else with its hidden states.

    Found by trying, once for each model object.
    """
    known = "_betaflow_projects"
    if not hasattr(model, known):
        setattr(model, known, _is_projection(model))
    return Head.of(model) if getattr(model, known) else None


@torch.no_grad()
def _is_projection(model: Any) -> bool:
    ids = torch.tensor([[3, 10, 17, 24]], device=next(model.parameters()).device)
    training = model.training
    try:
        if not isinstance(model.get_output_embeddings(), nn.Linear):  # an adapter's, say
            return False
        model.eval()
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model(input_ids=ids, use_cache=False).logits
        ours = Head.of(model).logits(hidden[0])
        return torch.allclose(ours, logits[0].float(), rtol=1e-4, atol=1e-4)
    except Exception:  # whatever a model's code raises: then its own logits are used
        return False
    finally:
        model.train(training)
