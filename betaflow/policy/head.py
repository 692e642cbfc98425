"""From hidden states to log-probabilities, a chunk of positions at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from betaflow.policy.linear import linear, multiply
from betaflow.policy.loading import text_config

# Logits in memory at once, float32 values: 64 MiB on a GPU; 24 on a CPU, where glibc maps new pages
# for every tensor from 32 MiB on. More positions than fit are computed in chunks, and again in the
# backward pass, there in tiles of the vocabulary (of 4 MiB on a CPU).
CHUNK = 6 * 2**20
CHUNK_GPU = 16 * 2**20
TILE = 2**20
# What is done to logits one by one is done to so many at a time (1 MiB), while they are in a core's
# cache: several times as fast with a large vocabulary.
CACHED = 2**18

# Called with some of the positions and their log-probabilities, `(positions, vocabulary)`, which
# it must leave as they are.
Look = Callable[[slice, torch.Tensor], None]


def row_slices(matrix: torch.Tensor) -> list[slice]:
    """Slices of a matrix's rows, a processor's cache full each; on a GPU one of them all."""
    count, width = matrix.shape
    size = max(1, CACHED // width) if matrix.device.type == "cpu" else max(1, count)
    return [slice(start, start + size) for start in range(0, max(1, count), size)]


def log_softmax_(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of logits, `(positions, vocabulary)`, in place."""
    return torch.ops.aten._log_softmax.out(logits, -1, False, out=logits)  # type: ignore[no-any-return]


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

    def projector(self, hidden: torch.Tensor) -> Callable[[slice], torch.Tensor]:
        """From some of the positions of `hidden`, `(positions, width)`, to their logits, float32.

        Multiplied in the precision that is set now, whichever is when it is called; no gradient.
        """
        kind = _kind(hidden)
        states, matrix, offset = hidden.to(kind), self.weight.to(kind), _cast(self.bias, kind)

        def project(part: slice) -> torch.Tensor:
            with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
                return _logits(states[part], matrix, offset, self.cap)

        return project

    def logps(
        self, hidden: torch.Tensor, targets: torch.Tensor, look: Look | None = None
    ) -> torch.Tensor:
        """Log-probability of each target, nats, float32 `(positions,)`.

        `look`: is shown the vocabulary's, a chunk of positions at a time.
        """
        found: torch.Tensor = _TokenLogps.apply(
            hidden, self.weight, self.bias, targets, self.cap, look
        )
        return found


class _TokenLogps(torch.autograd.Function):
    """log softmax(cap tanh((W h + b) / cap))[target], a chunk of logits at a time.

    With few enough positions the vocabulary's log-probabilities are kept for the backward pass,
    which makes softmax - onehot of them in place. With more, only each position's log-sum-exp is
    kept, and the backward pass goes over the vocabulary in tiles: each row of the weight's gradient
    is written once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        cap: float | None,
        look: Look | None,
    ) -> torch.Tensor:
        device = hidden.device.type
        ctx.kind, ctx.cap, ctx.device = _kind(hidden), cap, device
        rows = max(1, (CHUNK if device == "cpu" else CHUNK_GPU) // weight.shape[0])
        keep = len(targets) <= rows and any(ctx.needs_input_grad[:3])
        logps = hidden.new_empty(len(targets), dtype=torch.float32)
        normalisers, kept = torch.empty_like(logps), None
        with torch.autocast(device, enabled=False):
            states, matrix = hidden.to(ctx.kind), weight.to(ctx.kind)
            offset = _cast(bias, ctx.kind)
            for start in range(0, len(targets), rows):
                part = slice(start, start + rows)
                logits = _logits(states[part], matrix, offset, cap)
                raw = logits.gather(1, targets[part, None])
                for some in row_slices(logits):
                    log_softmax_(logits[some])
                found = logits.gather(1, targets[part, None])
                logps[part], normalisers[part] = found[:, 0], (raw - found)[:, 0]
                if look is not None:
                    look(part, logits)
                kept = logits if keep else None
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers, kept)
        return logps

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, normalisers, kept = ctx.saved_tensors
        for_hidden, for_weight, for_bias = (
            torch.zeros_like(t, dtype=torch.float32) if wanted else None
            for t, wanted in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        )
        size = weight.shape[0]
        most = TILE if ctx.device == "cpu" else CHUNK_GPU
        tile = size if kept is not None else max(1, most // max(1, len(targets)))
        with torch.autocast(ctx.device, enabled=False):
            states = hidden.to(ctx.kind)
            for first in range(0, size, tile):
                some = slice(first, first + tile)
                matrix = weight[some].to(ctx.kind)
                offset = None if bias is None else bias[some].to(ctx.kind)
                slope, by = None, kept
                if kept is None or ctx.cap is not None:
                    logits = _logits(states, matrix, offset, ctx.cap)
                    if ctx.cap is not None:
                        slope = 1 - (logits / ctx.cap).square()
                    by = logits if kept is None else kept
                for rows in row_slices(by):
                    if kept is None:
                        by[rows].sub_(normalisers[rows, None])
                    by[rows].exp_().mul_(-gradient[rows, None])
                here = (targets >= first) & (targets < first + tile)
                by[here, targets[here] - first] += gradient[here]
                if slope is not None:
                    by.mul_(slope)
                if for_bias is not None:
                    for_bias[some] = by.sum(0)
                by = by.to(ctx.kind)
                if for_hidden is not None:
                    for_hidden += multiply(by, matrix.t())
                if for_weight is not None:
                    for_weight[some] = multiply(by.t(), states.t())
                del by  # before the next tile's
        return (
            *(
                None if found is None else found.to(of.dtype)
                for found, of in zip(
                    (for_hidden, for_weight, for_bias), (hidden, weight, bias), strict=True
                )
            ),
            None,
            None,
            None,
        )


def _kind(hidden: torch.Tensor) -> torch.dtype:
    """Of a product with `hidden`: autocast's, where it is on."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _cast(bias: torch.Tensor | None, kind: torch.dtype) -> torch.Tensor | None:
    return None if bias is None else bias.to(kind)


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, cap: float | None
) -> torch.Tensor:
    """Logits of (a tile of) the vocabulary, float32 `(positions, vocabulary)`, a new tensor."""
    logits = multiply(hidden, weight, bias).float()
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


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
        ids %= text_config(model.config).vocab_size
        # Under autocast some models (Gemma 2) cap their logits in bfloat16, and would not pass.
        with torch.autocast(ids.device.type, enabled=False):
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            logits = model(input_ids=ids, use_cache=False).logits
            ours = Head.of(model).logits(hidden[0])
        return torch.allclose(ours, logits[0].float(), rtol=1e-4, atol=1e-4)
    except Exception:  # whatever a model's code raises: then its own logits are used
        return False
    finally:
        model.train(training)
