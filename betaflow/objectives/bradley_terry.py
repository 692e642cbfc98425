"""The Bradley-Terry model of preferences (Bradley and Terry 1952)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid


def bradley_terry_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """-log sigma(r(x, y_w) - r(x, y_l)) of each pair, `(pairs,)`; Rafailov et al. equation 2."""
    return -logsigmoid(chosen - rejected)


def preference_probability(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """P(first preferred to second) = sigma(r_1 - r_2), equation 1."""
    return torch.sigmoid(first - second)
