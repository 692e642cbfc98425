"""Direct Preference Optimization (Rafailov et al. 2023)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import logsigmoid


class DPOLoss(NamedTuple):
    """Per-pair values, each `(pairs,)`. Rewards are detached."""

    losses: torch.Tensor
    chosen_rewards: torch.Tensor
    rejected_rewards: torch.Tensor


def dpo_loss(
    policy_chosen_logps: torch.Tensor,
    policy_rejected_logps: torch.Tensor,
    reference_chosen_logps: torch.Tensor,
    reference_rejected_logps: torch.Tensor,
    *,
    beta: float,
) -> DPOLoss:
    """The DPO loss of each pair: -log sigmoid(beta h), equation 7, where

    h = (log pi - log pi_ref)(y_w) - (log pi - log pi_ref)(y_l).

    Args:
        policy_chosen_logps: summed log pi(y_w | x), nats, `(pairs,)`; the other three likewise.
        beta: strength of the KL constraint, positive.

    Returns:
        The losses, and the implicit rewards beta log(pi / pi_ref) of both completions.
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    losses = -logsigmoid(beta * (chosen - rejected))
    return DPOLoss(losses, (beta * chosen).detach(), (beta * rejected).detach())


def gradient_weight(chosen_rewards: torch.Tensor, rejected_rewards: torch.Tensor) -> torch.Tensor:
    """sigma(r_l - r_w), the weight of each pair in the gradient (section 4), `(pairs,)`."""
    return torch.sigmoid(rejected_rewards - chosen_rewards)
