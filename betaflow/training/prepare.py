"""A policy made ready to train: adapters, gradient checkpointing, compilation, sharding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from betaflow.errors import UserError
from betaflow.policy.scorer import Scorer
from betaflow.training.distributed import is_main, world

if TYPE_CHECKING:
    from betaflow.config import DPOTraining


def prepare(policy: Any, settings: DPOTraining, *, pad: int) -> Scorer:
    """The policy's scorer, as the settings want it trained; says once how it is computed."""
    scorer = Scorer(policy, pad)
    if is_main():
        scorer.explain()
    if settings.gradient_checkpointing:
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy.enable_input_require_grads()  # frozen embeddings must not cut the graph (LoRA)
    if settings.compile:
        for layer in layers(policy):
            layer.compile(dynamic=True)
    if world() > 1:
        shard(scorer)
    return scorer


def layers(policy: Any) -> list[nn.Module]:
    """The repeated blocks of a transformers model."""
    names = set(policy._no_split_modules or ())
    found = [module for module in policy.modules() if type(module).__name__ in names]
    if not found:
        raise UserError(
            f"{type(policy).__name__} does not say what its layers are (_no_split_modules), which "
            "dpo.training.compile and processes > 1 need; turn them off"
        )
    return found


def shard(scorer: Scorer) -> None:
    """Shard parameters, gradients and optimizer state over the processes (FSDP2), by layer.

    Gradients are summed, not averaged: each process divides by the whole batch.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for module in (*layers(scorer.policy), scorer):
        # The root too: unsharded after an evaluation, its parameters would not be the optimizer's.
        fully_shard(module, reshard_after_forward=True)
        module.set_gradient_divide_factor(1.0)  # type: ignore[operator]
        if torch.distributed.get_backend() == "gloo":
            module.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]
    register_fsdp_forward_method(scorer, "generate")
