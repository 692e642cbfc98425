"""Preferred-FT and Unlikelihood, baselines of the DPO paper (Rafailov et al. 2023, section 6)."""

from __future__ import annotations

import torch

from betaflow.objectives.dpo import DPOLoss


def unlikelihood_loss(
    policy_chosen_logps: torch.Tensor,
    policy_rejected_logps: torch.Tensor,
    reference_chosen_logps: torch.Tensor,
    reference_rejected_logps: torch.Tensor,
    *,
    alpha: float,
) -> DPOLoss:
    """-log pi(y_w | x) + alpha log pi(y_l | x) of each pair.

    At alpha 0 it is Preferred-FT: maximum likelihood of the chosen completions. Above 0 it has no
    lower bound, since log pi(y_l | x) has none: nothing holds the policy near the reference.

    Args:
        policy_chosen_logps: summed log pi(y_w | x), nats, `(pairs,)`; the other three likewise.
            The loss does not depend on the reference's.
        alpha: weight of the rejected completion's likelihood, 0 or more.

    Returns:
        The losses, nats, and as rewards the log-ratios log(pi / pi_ref), since there is no beta.

    Raises:
        ValueError: alpha is below 0 or not finite.
    """
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha must be at least 0 and finite, not {alpha}")
    # At alpha 0 the rejected completion is left out: 0 times its -inf would be NaN.
    losses = -policy_chosen_logps
    if alpha:
        losses = losses + alpha * policy_rejected_logps
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    return DPOLoss(losses, chosen.detach(), rejected.detach())
