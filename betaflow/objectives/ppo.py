"""Proximal Policy Optimization on completions (Schulman et al. 2017; Ziegler et al. 2019).

Every tensor is `(episodes, tokens)` and zero where `mask` is false.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class PPOLoss(NamedTuple):
    """Scalars: the two losses, and two figures of how far the policy moved."""

    policy: torch.Tensor
    value: torch.Tensor
    clip_fraction: torch.Tensor
    approx_kl: torch.Tensor


def token_rewards(
    scores: torch.Tensor,
    logps: torch.Tensor,
    reference_logps: torch.Tensor,
    mask: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """-beta (log pi - log pi_ref) at each token, and the score `(episodes,)` at the last one."""
    rewards = -beta * (logps - reference_logps) * mask
    last = last_token(mask)
    return rewards.scatter_add(-1, last[:, None], scores[:, None].to(rewards.dtype))


def last_token(mask: torch.Tensor) -> torch.Tensor:
    """Position of each row's last true element, `(episodes,)`."""
    positions = torch.arange(mask.shape[-1], device=mask.device)
    return torch.where(mask, positions, -1).max(-1).values


def advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimates and returns (Schulman et al. 2016, equation 16).

    An episode's tokens are contiguous; the value after its last token is zero.
    """
    estimates = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[-1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        next_value = values[:, t] * mask[:, t]
        estimates[:, t] = following
    return estimates, (estimates + values) * mask


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the true positions of `mask`."""
    return (values * mask).sum() / mask.sum()


def whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Shift and scale to mean 0 and variance 1 over the true positions of `mask`."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def ppo_loss(
    logps: torch.Tensor,
    old_logps: torch.Tensor,
    advantage: torch.Tensor,
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    *,
    clip: float,
    value_clip: float,
) -> PPOLoss:
    """Clipped policy objective (equation 7 of the PPO paper) and clipped value loss, by token."""
    ratio = torch.exp((logps - old_logps) * mask)
    policy = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))
    near = old_values + (values - old_values).clamp(-value_clip, value_clip)
    value = 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)
    with torch.no_grad():
        clipped = ((ratio - 1).abs() > clip).float()
        moved = (ratio - 1) - (logps - old_logps) * mask
    return PPOLoss(
        masked_mean(policy, mask),
        masked_mean(value, mask),
        masked_mean(clipped, mask),
        masked_mean(moved, mask),
    )
