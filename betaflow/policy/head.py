"""From hidden states to log-probabilities, a chunk of positions at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from betaflow.policy.linear import linear, multiply

# Logits in memory at once, float32 values (64 MiB). More positions than fit are computed in
# chunks, and again in the backward pass.
CHUNK = 16 * 2**20


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
        found: torch.Tensor = _TokenLogps.apply(hidden, self.weight, self.bias, targets, self.cap)
        return found


class _TokenLogps(torch.autograd.Function):
    """log softmax(cap tanh((W h + b) / cap))[target], with one buffer of logits a chunk.

    With few enough positions the log-probabilities of the vocabulary are kept for the backward
    pass, where softmax - onehot is made of them in place; with more each chunk's are computed
    again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        cap: float | None,
    ) -> torch.Tensor:
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        ctx.kind = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        ctx.cap, ctx.device = cap, device
        rows = max(1, CHUNK // weight.shape[0])
        keep = len(targets) <= rows and any(ctx.needs_input_grad[:3])
        ctx.rows = rows
        logps, kept = hidden.new_empty(len(targets), dtype=torch.float32), None
        with torch.autocast(device, enabled=False):
            states, matrix = hidden.to(ctx.kind), weight.to(ctx.kind)
            offset = None if bias is None else bias.to(ctx.kind)
            for start in range(0, len(targets), rows):
                part = slice(start, start + rows)
                every = _log_softmax(states[part], matrix, offset, cap)
                logps[part] = every.gather(1, targets[part, None])[:, 0]
                kept = every if keep else None
        ctx.save_for_backward(hidden, weight, bias, targets, kept)
        return logps

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, kept = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        found = [
            torch.zeros_like(t, dtype=torch.float32) if wanted else None
            for t, wanted in ((hidden, for_hidden), (weight, for_weight), (bias, for_bias))
        ]
        with torch.autocast(ctx.device, enabled=False):
            states, matrix = hidden.to(ctx.kind), weight.to(ctx.kind)
            offset = None if bias is None else bias.to(ctx.kind)
            for start in range(0, len(targets), ctx.rows):
                part = slice(start, start + ctx.rows)
                h = states[part]
                every = kept if kept is not None else _log_softmax(h, matrix, offset, ctx.cap)
                slope = None if ctx.cap is None else _slope(h, matrix, offset, ctx.cap)
                by = every.exp_().mul_(-gradient[part, None])
                by.scatter_add_(1, targets[part, None], gradient[part, None])
                if slope is not None:
                    by.mul_(slope)
                if found[2] is not None:
                    found[2] += by.sum(0)
                by = by.to(ctx.kind)
                if found[0] is not None:
                    found[0][part] = multiply(by, matrix.t())
                if found[1] is not None:
                    found[1] += multiply(by.t(), h.t())
                del by, every  # before the next chunk's
        grads = [
            None if g is None else g.to(t.dtype)
            for g, t in zip(found, (hidden, weight, bias), strict=True)
        ]
        return (*grads, None, None)


def _log_softmax(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, cap: float | None
) -> torch.Tensor:
    """Log-probabilities of the vocabulary, float32 `(positions, vocabulary)`."""
    logits = multiply(hidden, weight, bias).float()
    if cap is not None:
        logits.div_(cap).tanh_().mul_(cap)
    return torch.ops.aten._log_softmax.out(logits, -1, False, out=logits)  # type: ignore[no-any-return]


def _slope(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, cap: float
) -> torch.Tensor:
    """d capped / d logits = 1 - tanh^2(logits / cap), `(positions, vocabulary)`."""
    logits = multiply(hidden, weight, bias).float()
    return logits.div_(cap).tanh_().square_().neg_().add_(1)


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
