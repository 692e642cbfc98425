"""Proximal Policy Optimization on completions (Schulman et al. 2017; Ziegler et al. 2019).

Every tensor is `(episodes, tokens)` and zero where `mask` is false.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class PPOLoss(NamedTuple):
    """Scalars: the two losses, and figures of how far policy and critic moved.

    `approx_kl` is k3 of the step's own policies, (ratio - 1) - log ratio (Schulman 2020), nats a
    token; `ratio` the mean probability ratio; the fractions are of tokens whose ratio, or change
    of value, lies beyond the clipping range.
    """

    policy: torch.Tensor
    value: torch.Tensor
    clip_fraction: torch.Tensor
    value_clip_fraction: torch.Tensor
    approx_kl: torch.Tensor
    ratio: torch.Tensor


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


def whiten(values: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True) -> torch.Tensor:
    """Scale to variance 1 over the true positions of `mask`, and shift to mean 0 (or keep it).

    Without the shift the mean is put back as it was, as Ziegler et al. do with rewards.
    """
    mean = masked_mean(values, mask)
    scale = torch.rsqrt(masked_mean((values - mean) ** 2, mask) + 1e-8)
    centred = (values - mean) * scale
    return (centred if shift_mean else centred + mean) * mask


def adapted_coefficient(
    coefficient: float, kl: float, *, target: float, episodes: int, horizon: int
) -> float:
    """The KL coefficient after a rollout (Ziegler et al. 2019, section 2.2).

    It grows in proportion to the relative error, clipped to +-0.2: by a fifth of
    `episodes / horizon` at most.

    Args:
        kl, target: of a completion, nats (not of a token).
        horizon: episodes over which an error of 100 % would double the coefficient, unclipped.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * episodes / horizon)


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
        far = ((values - old_values).abs() > value_clip).float()
        moved = (ratio - 1) - (logps - old_logps) * mask
    found = (policy, value, clipped, far, moved, ratio.detach())
    return PPOLoss(*(masked_mean(each, mask) for each in found))
