"""Low-rank adapters through peft: added to a policy in place, merged for export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer

from betaflow.errors import UserError

if TYPE_CHECKING:
    from betaflow.config import LoRASettings


def add_adapters(policy: Any, settings: LoRASettings, *, seed: int) -> None:
    """Freeze the policy and add trainable adapters that change nothing yet (B = 0).

    Raises:
        UserError: the model has none of the `targets`, or none is known for its family.
    """
    policy.requires_grad_(False)
    embedding = policy.get_input_embeddings().weight
    tied = policy.get_output_embeddings().weight is embedding
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, policy)
        except ValueError as error:
            raise UserError(
                f"no adapter could be added to {type(policy).__name__}: {error}\n"
                "Name its linear layers in dpo.training.lora.targets, such as [q_proj, v_proj]."
            ) from error
    # Merged into one of two layers that share their weight, an adapter would change both.
    if tied and any(layer.get_base_layer().weight is embedding for layer in adapters(policy)):
        raise UserError(
            "dpo.training.lora.targets names an embedding that this model shares between its "
            "input and its output; name other layers"
        )


def adapters(policy: Any) -> list[BaseTunerLayer]:
    """The layers that have an adapter."""
    return [module for module in policy.modules() if isinstance(module, BaseTunerLayer)]


def merge_adapters(policy: Any) -> None:
    """Add every adapter to its layer's weight and put the plain layer back, in place."""
    for name, module in list(policy.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(policy.get_submodule(parent), child, module.get_base_layer())
    policy.requires_grad_(True)
