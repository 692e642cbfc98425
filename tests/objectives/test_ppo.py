"""PPO's arithmetic, worked by hand."""

from __future__ import annotations

import pytest
import torch

from betaflow.objectives.bradley_terry import bradley_terry_loss, preference_probability
from betaflow.objectives.ppo import (
    adapted_coefficient,
    advantages,
    last_token,
    masked_mean,
    ppo_loss,
    token_rewards,
    whiten,
)

# Two episodes: a prompt of one token and three tokens; a prompt of two and one token.
MASK = torch.tensor([[False, True, True, True], [False, False, True, False]])


def test_the_score_lands_on_the_last_real_token() -> None:
    logps = torch.tensor([[0.0, -1.0, -2.0, -3.0], [0.0, 0.0, -1.0, 0.0]])
    reference = torch.tensor([[0.0, -1.5, -2.0, -2.0], [0.0, 0.0, -3.0, 0.0]])
    found = token_rewards(torch.tensor([10.0, 20.0]), logps, reference, MASK, beta=0.1)
    expected = torch.tensor([[0.0, -0.05, 0.0, 10.1], [0.0, 0.0, 19.8, 0.0]])
    torch.testing.assert_close(found, expected)
    assert last_token(MASK).tolist() == [3, 2]


def test_gae_by_hand() -> None:
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 2.0, 0.0]])
    values = torch.tensor([[0.0, 0.5, 0.25, 0.75], [0.0, 0.0, 1.5, 0.0]])
    found, returns = advantages(rewards, values, MASK, gamma=1.0, lam=0.5)
    # deltas of the first: .25 - .5, .75 - .25, 1 - .75
    expected = torch.tensor([[0.0, -0.25 + 0.5 * 0.625, 0.625, 0.25], [0.0, 0.0, 0.5, 0.0]])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(returns, (expected + values) * MASK)


def test_with_lambda_one_returns_are_what_is_still_to_come() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 4) * MASK, torch.randn(2, 4) * MASK
    _, returns = advantages(rewards, values, MASK, gamma=1.0, lam=1.0)
    to_come = rewards.flip(-1).cumsum(-1).flip(-1) * MASK
    torch.testing.assert_close(returns, to_come)


def test_whitening_sees_real_tokens_alone() -> None:
    found = whiten(torch.tensor([[99.0, 1.0, 2.0, 3.0], [99.0, 99.0, 4.0, 99.0]]), MASK)
    torch.testing.assert_close(masked_mean(found, MASK), torch.tensor(0.0))
    torch.testing.assert_close(masked_mean(found**2, MASK), torch.tensor(1.0))
    assert (found[~MASK] == 0).all()


def test_the_first_pass_has_ratio_one_and_clips_nothing() -> None:
    torch.manual_seed(0)
    logps = (torch.randn(2, 4) * MASK).requires_grad_()
    gain, values = torch.randn(2, 4) * MASK, torch.randn(2, 4) * MASK
    loss = ppo_loss(
        logps, logps.detach(), gain, values, values, values, MASK, clip=0.2, value_clip=0.2
    )
    assert loss.clip_fraction == loss.value_clip_fraction == 0
    assert loss.approx_kl == 0
    assert loss.ratio == 1
    assert loss.value == 0
    (gradient,) = torch.autograd.grad(loss.policy, logps)
    torch.testing.assert_close(gradient, -gain * MASK / MASK.sum())


def test_a_clipped_ratio_has_no_gradient_in_the_direction_it_ran_away() -> None:
    mask = torch.tensor([[True, True]])
    old = torch.zeros(1, 2)
    new = torch.log(torch.tensor([[1.5, 1.5]])).requires_grad_()
    gain = torch.tensor([[1.0, -1.0]])
    zero = torch.zeros(1, 2)
    loss = ppo_loss(new, old, gain, zero, zero, zero, mask, clip=0.2, value_clip=0.2)
    torch.testing.assert_close(loss.policy, torch.tensor((-1.2 + 1.5) / 2))
    (gradient,) = torch.autograd.grad(loss.policy, new)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.75]]))
    assert loss.clip_fraction == 1


def test_the_value_loss_takes_the_worse_of_the_clipped_and_the_plain_error() -> None:
    mask, zero = torch.tensor([[True]]), torch.zeros(1, 1)
    loss = ppo_loss(
        zero, zero, zero, torch.tensor([[1.0]]), zero, torch.tensor([[1.0]]), mask,
        clip=0.2, value_clip=0.2,
    )  # fmt: skip
    torch.testing.assert_close(loss.value, torch.tensor(0.5 * 0.8**2))
    assert loss.value_clip_fraction == 1


def test_bradley_terry() -> None:
    chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0])
    found = bradley_terry_loss(chosen, rejected)
    torch.testing.assert_close(found, torch.tensor([0.313262, 0.693147]), atol=1e-5, rtol=0)
    torch.testing.assert_close(preference_probability(chosen, rejected), torch.exp(-found))


def test_whitening_may_keep_the_mean() -> None:
    values = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 6.0, 0.0]])
    found = whiten(values, MASK, shift_mean=False)
    torch.testing.assert_close(masked_mean(found, MASK), torch.tensor(3.0))
    torch.testing.assert_close(masked_mean((found - 3.0) ** 2, MASK), torch.tensor(1.0))
    assert (found[~MASK] == 0).all()


def test_the_coefficient_follows_the_kl_and_no_faster_than_a_fifth() -> None:
    def after(kl: float) -> float:
        return adapted_coefficient(0.1, kl, target=4.0, episodes=50, horizon=100)

    assert after(4.0) == 0.1
    assert after(4.4) == pytest.approx(0.1 * (1 + 0.1 * 0.5))
    assert after(3.6) == pytest.approx(0.1 * (1 - 0.1 * 0.5))
    assert after(400.0) == pytest.approx(0.1 * (1 + 0.2 * 0.5))
    assert after(0.0) == pytest.approx(0.1 * (1 - 0.2 * 0.5))
