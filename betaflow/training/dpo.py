"""The DPO trainer: policy log-probabilities against the cached reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from betaflow.data.tokenise import Encoded, collate
from betaflow.errors import UserError
from betaflow.objectives.dpo import dpo_loss, gradient_weight
from betaflow.policy.loading import autocast, device
from betaflow.policy.logps import all_sequence_logps, sequence_logps
from betaflow.training import loop
from betaflow.training.optim import learning_rate, make_optimizer, optimizer_step

if TYPE_CHECKING:
    from betaflow.config import DPOTraining


class ReferencedPairs(NamedTuple):
    """Encoded pairs and their reference log-probabilities, `(pairs,)` each."""

    chosen: list[Encoded]
    rejected: list[Encoded]
    reference_chosen: torch.Tensor
    reference_rejected: torch.Tensor


def train_dpo(
    policy: nn.Module,
    pairs: ReferencedPairs,
    held_out: ReferencedPairs,
    settings: DPOTraining,
    *,
    label: str,
    beta: float,
    peak_rate: float,
    seed: int,
    pad: int,
    precision: str,
    fingerprint: str,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[loop.Trained, dict[str, float]]:
    """Train the policy in place; return the steps' metrics and held-out figures.

    Every metric is a mean over the step's pairs: `loss`, `rewards/*` (implicit, in units of the
    reward), `logps/*` (nats a sequence), `grad_weight` = sigma(r_l - r_w); then `grad_norm`
    before clipping, `learning_rate`, `tokens` (both sequences of every pair).

    Raises:
        UserError: the first loss is not ln 2: policy and reference differ before training.
    """
    count = len(pairs.chosen)
    steps = loop.total_steps(count, settings.batch_size, settings.epochs)
    optimizer = make_optimizer(settings, policy.parameters())

    def update(step: int) -> dict[str, float]:
        indices = loop.batch_indices(count, settings.batch_size, seed, step)
        # Within a step the order is free: like lengths together leave little padding.
        indices.sort(key=lambda i: (_longest(pairs, i), i))
        sums: dict[str, torch.Tensor] = {}
        for group in loop.micro_batches(indices, settings.micro_batch_size):
            sequences = [pairs.chosen[i] for i in group] + [pairs.rejected[i] for i in group]
            with autocast(precision):
                logps = sequence_logps(policy, collate(sequences, pad).to(device()))
            if step == 0:
                require_reference(logps, pairs, group, precision)
            values = _values(logps, pairs, group, beta)
            (values["loss"].sum() / len(indices)).backward()
            for key, value in values.items():
                sums[key] = sums.get(key, torch.zeros(())) + value.detach().sum().cpu()
        metrics = {key: float(value) / len(indices) for key, value in sums.items()}
        if step == 0:
            require_ln2(metrics["loss"], precision)
        rate = learning_rate(settings, peak_rate, step, steps)
        norm = optimizer_step(optimizer, rate, settings.max_grad_norm)
        return {
            **metrics,
            "grad_norm": norm,
            "learning_rate": rate,
            "tokens": _tokens(pairs, indices),
        }

    policy.train()
    trained = loop.fit(
        label,
        steps,
        update,
        modules={"policy": policy},
        optimizer=optimizer,
        fingerprint=fingerprint,
        checkpoint_seconds=settings.checkpoint_seconds,
        show=("loss", "rewards/accuracy", "rewards/margin"),
        on_step=on_step,
    )
    policy.eval()
    figures = evaluate(
        policy,
        held_out,
        beta,
        pad=pad,
        batch_size=2 * settings.micro_batch_size,
        precision=precision,
    )
    return trained, figures


def evaluate(
    policy: nn.Module,
    pairs: ReferencedPairs,
    beta: float,
    *,
    pad: int,
    batch_size: int,
    precision: str,
) -> dict[str, float]:
    """Means over held-out pairs of the metrics of a step, under `eval/`."""
    count = len(pairs.chosen)
    if not count:
        return {}
    sequences = pairs.chosen + pairs.rejected
    logps = all_sequence_logps(
        policy, sequences, pad=pad, batch_size=batch_size, precision=precision
    )
    values = _values(logps, pairs, list(range(count)), beta)
    return {f"eval/{key}": float(value.mean()) for key, value in values.items()}


def require_reference(
    logps: torch.Tensor, pairs: ReferencedPairs, group: list[int], precision: str
) -> None:
    """Stop unless the untrained policy gives each completion the reference's log-probability.

    Stricter than the loss, whose mean hides errors that cancel.
    """
    cached = torch.cat([pairs.reference_chosen[group], pairs.reference_rejected[group]])
    gap = (logps.detach().cpu() - cached).abs() / cached.abs().clamp_min(1.0)
    if not float(gap.max()) <= (1e-3 if precision == "float32" else 5e-2):
        raise UserError(
            f"log-probabilities of the policy before training differ from the cached reference's "
            f"by up to {float(gap.max()):.1e} (relative), so the first loss is not ln 2: the "
            "reference is not that of this model. Delete out/reference and run again."
        )


def require_ln2(loss: float, precision: str) -> None:
    """Stop unless the first loss is ln 2, which it is where policy and reference are the same."""
    tolerance = 1e-3 if precision == "float32" else 2e-2
    if abs(loss - math.log(2)) > tolerance:
        raise UserError(
            f"the first DPO loss is {loss:.6f}, not ln 2 = {math.log(2):.6f}: the cached reference "
            "is not that of this model. Delete out/reference and run again."
        )


def _values(
    logps: torch.Tensor, pairs: ReferencedPairs, group: list[int], beta: float
) -> dict[str, torch.Tensor]:
    """Per-pair metrics, each `(pairs,)`; `logps` holds the chosen half, then the rejected one."""
    chosen, rejected = logps.chunk(2)
    loss = dpo_loss(
        chosen,
        rejected,
        pairs.reference_chosen[group].to(logps.device),
        pairs.reference_rejected[group].to(logps.device),
        beta=beta,
    )
    margin = loss.chosen_rewards - loss.rejected_rewards
    return {
        "loss": loss.losses,
        "rewards/chosen": loss.chosen_rewards,
        "rewards/rejected": loss.rejected_rewards,
        "rewards/margin": margin,
        "rewards/accuracy": (margin > 0).float(),
        "logps/chosen": chosen,
        "logps/rejected": rejected,
        "grad_weight": gradient_weight(loss.chosen_rewards, loss.rejected_rewards),
    }


def _longest(pairs: ReferencedPairs, index: int) -> int:
    return max(pairs.chosen[index].length, pairs.rejected[index].length)


def _tokens(pairs: ReferencedPairs, indices: list[int]) -> int:
    return sum(pairs.chosen[i].length + pairs.rejected[i].length for i in indices)
