"""The likelihood baselines: worked values, the gradient, what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from betaflow.objectives.unlikelihood import unlikelihood_loss

CHOSEN, REJECTED = torch.tensor([-2.0, -30.0]), torch.tensor([-4.0, -0.5])
REFERENCE = torch.tensor([-3.0, -28.0]), torch.tensor([-3.5, -1.5])


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(0.0, [2.0, 30.0]), (0.5, [2.0 - 2.0, 30.0 - 0.25]), (1.0, [2.0 - 4.0, 30.0 - 0.5])],
)
def test_by_hand(alpha: float, expected: list[float]) -> None:
    found = unlikelihood_loss(CHOSEN, REJECTED, *REFERENCE, alpha=alpha)
    assert found.losses.tolist() == expected
    assert found.chosen_rewards.tolist() == [1.0, -2.0]
    assert found.rejected_rewards.tolist() == [-0.5, 1.0]


def test_it_is_the_cross_entropy_of_both_sides_tokens() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 7, 11, dtype=torch.float64)  # side, pair, place, vocabulary
    tokens = torch.randint(11, (2, 3, 7))
    logps = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0].sum(-1)
    each = cross_entropy(logits.flatten(0, 2), tokens.flatten(), reduction="none").view(2, 3, 7)
    found = unlikelihood_loss(*logps, *logps, alpha=0.3)
    torch.testing.assert_close(found.losses, (each[0] - 0.3 * each[1]).sum(-1))


def test_the_rejected_side_weighs_alpha_at_every_probability() -> None:
    """The gradient never fades, as DPO's does for a pair well ordered: the loss has no bound."""
    for logp in (-1.0, -1e4):
        sides = torch.tensor([-2.0]).requires_grad_(), torch.tensor([logp]).requires_grad_()
        found = unlikelihood_loss(*sides, *REFERENCE, alpha=0.25)
        found.losses.sum().backward()
        assert [side.grad.item() for side in sides if side.grad is not None] == [-1.0, 0.25]
        assert not found.chosen_rewards.requires_grad and not found.rejected_rewards.requires_grad


def test_preferred_ft_does_not_see_the_rejected_completion() -> None:
    never = torch.tensor([-math.inf, -math.inf])
    assert unlikelihood_loss(CHOSEN, never, *REFERENCE, alpha=0).losses.tolist() == [2.0, 30.0]


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf])
def test_an_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        unlikelihood_loss(CHOSEN, REJECTED, *REFERENCE, alpha=alpha)
