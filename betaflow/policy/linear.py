"""Float32 linear layers on the CPU by oneDNN.

torch multiplies float32 matrices on x86 with MKL, which keeps to AVX2 on processors that are not
Intel's: there oneDNN, which torch brings too, is nearly twice as fast. On Intel's own MKL is the
faster one, and stays (benchmarks/linear.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

BOTH = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


def _intel() -> bool:
    about = Path("/proc/cpuinfo")
    return about.exists() and "GenuineIntel" in about.read_text(encoding="utf-8", errors="replace")


ONEDNN = BOTH and not _intel()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x W^T + b, as `torch.nn.functional.linear`; `x` is `(..., in)`, `weight` `(out, in)`."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    plain = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    if not (ONEDNN and plain and x.numel()) or _elsewhere():
        return nn.functional.linear(x, weight, bias)
    # A function of autograd costs as much as a product of few rows.
    compute = _Linear.apply if torch.is_grad_enabled() else multiply
    rows: torch.Tensor = compute(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows.view(*x.shape[:-1], weight.shape[0])


def _elsewhere() -> bool:
    return torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            multiply(gradient, weight.t()) if for_x else None,
            multiply(gradient.t(), x.t()) if for_weight else None,
            gradient.sum(0) if for_bias else None,
        )


def multiply(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """a b^T + bias of matrices `(n, k)` and `(m, k)`, without a gradient."""
    if not (ONEDNN and a.dtype == torch.float32 and a.device.type == "cpu" and a.numel()):
        return a @ b.t() if bias is None else torch.addmm(bias, a, b.t())
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return found


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`(..., in)` to `(..., out)`."""
        return linear(input, self.weight, self.bias)


def use_onednn(model: nn.Module) -> None:
    """Let every plain linear layer of a model compute by `linear`; parameters stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
