"""Optimisers and the learning-rate schedule, a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from betaflow.training import distributed
from betaflow.training.loop import NotFinite

if TYPE_CHECKING:
    from betaflow.config import OptimisationSettings


def make_optimizer(
    settings: OptimisationSettings,
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    *,
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """AdamW, or RMSprop as in the DPO paper's code. The rate is set at every step."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=0.0, eps=eps, weight_decay=settings.weight_decay)
    return torch.optim.RMSprop(parameters, lr=0.0, eps=eps, weight_decay=settings.weight_decay)


def learning_rate(settings: OptimisationSettings, peak: float, step: int, steps: int) -> float:
    """The rate of 0-based `step` of `steps`: linear warm-up to `peak`, then the schedule."""
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return peak
    done = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    if settings.schedule == "linear":
        return peak * (1 - done)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def optimizer_step(optimizer: torch.optim.Optimizer, rate: float, max_grad_norm: float) -> float:
    """Clip each parameter group's gradient, take one step at `rate`, clear the gradients.

    Returns the first group's norm before clipping.

    Raises:
        NotFinite: a norm is not; the weights are as they were, the gradients are cleared.
    """
    groups = optimizer.param_groups
    norms = [
        float(distributed.whole(nn.utils.clip_grad_norm_(group["params"], max_grad_norm)))
        for group in groups
    ]
    finite = all(math.isfinite(norm) for norm in norms)
    if finite:
        for group in groups:
            group["lr"] = rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if not finite:
        raise NotFinite(["grad_norm"])
    return norms[0]
