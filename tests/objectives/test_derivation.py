"""The derivation in `docs/derivation.md`, step by step, on a world small enough to enumerate.

Four prompts with six completions each, a random reward, a random reference policy, float64.
Policies and rewards are `(prompts, completions)`; every expectation is an exact sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from betaflow.objectives.bradley_terry import bradley_terry_loss, preference_probability
from betaflow.objectives.dpo import DPOLoss, LossName, dpo_loss, gradient_weight

PROMPTS, COMPLETIONS = 4, 6
BETAS = pytest.mark.parametrize("beta", [0.5, 2.0])


class World(NamedTuple):
    """r(x, y) and log pi_ref(y | x), each `(prompts, completions)`."""

    reward: torch.Tensor
    reference: torch.Tensor


@pytest.fixture
def world() -> World:
    torch.manual_seed(0)
    logits = torch.randn(PROMPTS, COMPLETIONS, dtype=torch.float64)
    reward = torch.randn(PROMPTS, COMPLETIONS, dtype=torch.float64)
    return World(reward, torch.log_softmax(logits, -1))


def objective(logps: torch.Tensor, world: World, beta: float) -> torch.Tensor:
    """Equation 3: E[r(x, y)] - beta KL(pi || pi_ref) of each prompt, `(..., prompts)`."""
    return (logps.exp() * (world.reward - beta * (logps - world.reference))).sum(-1)


def log_partition(world: World, beta: float) -> torch.Tensor:
    """log Z(x) = log sum_y pi_ref(y | x) exp(r(x, y) / beta), `(prompts,)`."""
    return torch.logsumexp(world.reference + world.reward / beta, -1)


def optimal_policy(world: World, beta: float) -> torch.Tensor:
    """Equation 4: log pi*(y | x) = log pi_ref(y | x) + r(x, y) / beta - log Z(x)."""
    return world.reference + world.reward / beta - log_partition(world, beta)[:, None]


def all_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Every ordered pair of unequal completions: index of the first, index of the second."""
    first, second = torch.ones(COMPLETIONS, COMPLETIONS).fill_diagonal_(0).nonzero().unbind(-1)
    return first, second


def loss_of_pairs(
    logps: torch.Tensor,
    reference: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    *,
    beta: float,
    loss: LossName = "sigmoid",
) -> DPOLoss:
    """The loss of `first` chosen over `second`, `(prompts, pairs)`."""
    return dpo_loss(
        logps[:, first],
        logps[:, second],
        reference[:, first],
        reference[:, second],
        beta=beta,
        loss=loss,
    )


def minimise(loss_of: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> torch.Tensor:
    """The log-policy `(prompts, completions)` where `loss_of` it is least, by L-BFGS."""
    logits = start.clone().requires_grad_()
    search = torch.optim.LBFGS(
        [logits],
        max_iter=1000,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        search.zero_grad()
        loss = loss_of(torch.log_softmax(logits, -1))
        loss.backward()
        return loss

    search.step(closure)  # type: ignore[arg-type]
    return torch.log_softmax(logits, -1).detach()


# --- equations 3 and 4: the optimum of the KL-constrained objective ------------------------------


@BETAS
def test_the_optimum_is_a_policy_worth_beta_log_z(world: World, beta: float) -> None:
    """pi* sums to 1 and its objective is beta log Z(x)."""
    optimum = optimal_policy(world, beta)
    torch.testing.assert_close(optimum.exp().sum(-1), torch.ones(PROMPTS, dtype=torch.float64))
    found, expected = objective(optimum, world, beta), beta * log_partition(world, beta)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert (found - objective(world.reference, world, beta)).min() > 0.01


@BETAS
def test_the_objective_has_no_slope_at_the_optimum(world: World, beta: float) -> None:
    def slope(logps: torch.Tensor) -> torch.Tensor:
        logits = logps.clone().requires_grad_()
        value = objective(torch.log_softmax(logits, -1), world, beta).sum()
        return torch.autograd.grad(value, logits)[0].abs().amax(-1)

    assert slope(optimal_policy(world, beta)).max() < 1e-14
    assert slope(world.reference).min() > 0.01


@BETAS
def test_every_other_policy_is_worse_by_beta_times_its_kl_to_the_optimum(
    world: World, beta: float
) -> None:
    """4,000 policies, near the optimum and anywhere: J(pi*) - J(pi) = beta KL(pi || pi*) > 0."""
    optimum = optimal_policy(world, beta)
    best = objective(optimum, world, beta)
    noise = torch.randn(1000, PROMPTS, COMPLETIONS, dtype=torch.float64)
    near = [torch.log_softmax(optimum + scale * noise, -1) for scale in (0.01, 0.1, 1.0)]
    others = torch.cat([*near, torch.log_softmax(3 * noise, -1)])
    lost = best - objective(others, world, beta)
    assert lost.min() > 0
    kl = (others.exp() * (others - optimum)).sum(-1)
    torch.testing.assert_close(lost, beta * kl, atol=1e-12, rtol=0)


# --- equations 5, 1, 2 and 6: the reward that a policy stands for --------------------------------


@BETAS
def test_the_optimum_s_implicit_reward_is_the_reward_less_beta_log_z(
    world: World, beta: float
) -> None:
    """Equation 5: beta log(pi* / pi_ref) + beta log Z = r, with the rewards of `dpo_loss`."""
    optimum = optimal_policy(world, beta)
    first, second = all_pairs()
    found = loss_of_pairs(optimum, world.reference, first, second, beta=beta)
    constant = beta * log_partition(world, beta)[:, None]
    assert constant.abs().min() > 0.001  # so that leaving it out would show
    recovered = found.chosen_rewards + constant
    torch.testing.assert_close(recovered, world.reward[:, first], atol=1e-12, rtol=0)
    recovered = found.rejected_rewards + constant
    torch.testing.assert_close(recovered, world.reward[:, second], atol=1e-12, rtol=0)


@BETAS
def test_the_implicit_reward_gives_the_same_preferences(world: World, beta: float) -> None:
    """Equations 1 and 6: Z(x) cancels, for it is the same for both completions of a prompt."""
    first, second = all_pairs()
    found = loss_of_pairs(optimal_policy(world, beta), world.reference, first, second, beta=beta)
    ours = preference_probability(found.chosen_rewards, found.rejected_rewards)
    theirs = preference_probability(world.reward[:, first], world.reward[:, second])
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    ratio = world.reward[:, first].exp() / (
        world.reward[:, first].exp() + world.reward[:, second].exp()
    )
    torch.testing.assert_close(theirs, ratio, atol=1e-12, rtol=0)
    assert (theirs - 0.5).abs().max() > 0.4


@BETAS
def test_the_reward_loss_of_a_policy_s_reward_is_the_dpo_loss(world: World, beta: float) -> None:
    """Equation 2 with equation 5 put in is equation 7, for any policy and any Z(x)."""
    torch.manual_seed(1)
    policy = torch.log_softmax(2 * torch.randn_like(world.reward), -1)
    log_z = torch.randn(PROMPTS, 1, dtype=torch.float64)
    reward = beta * (policy - world.reference) + beta * log_z
    first, second = all_pairs()
    ours = loss_of_pairs(policy, world.reference, first, second, beta=beta).losses
    theirs = bradley_terry_loss(reward[:, first], reward[:, second])
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


# --- equation 7: its minimum is the optimum of equation 3 ----------------------------------------


@BETAS
def test_minimising_the_dpo_loss_leads_to_the_optimum(world: World, beta: float) -> None:
    """Over all pairs, each as likely as Bradley-Terry has it; no reward model, no Z(x).

    The least loss is the entropy of the labels themselves.
    """
    first, second = all_pairs()
    probability = preference_probability(world.reward[:, first], world.reward[:, second])

    def loss(logps: torch.Tensor) -> torch.Tensor:
        pairs = loss_of_pairs(logps, world.reference, first, second, beta=beta)
        return (probability * pairs.losses).sum()

    found, optimum = minimise(loss, world.reference), optimal_policy(world, beta)
    torch.testing.assert_close(found.exp(), optimum.exp(), atol=1e-8, rtol=0)
    entropy = -(probability * probability.log()).sum()
    torch.testing.assert_close(loss(found), entropy, atol=1e-12, rtol=0)
    # It had to move, and not to another beta's optimum.
    for other in (world.reference, optimal_policy(world, 2 * beta)):
        assert (found.exp() - other.exp()).abs().amax(-1).min() > 0.001


# --- section 4: the gradient ---------------------------------------------------------------------


@BETAS
def test_autograd_is_the_paper_s_gradient(world: World, beta: float) -> None:
    """-beta sigma(r_l - r_w) (grad log pi(y_w | x) - grad log pi(y_l | x)), by parameter.

    The policy is softmax(theta . phi(x, y)), for which grad log pi(y | x) is
    phi(x, y) - E_pi[phi(x, .)]: the closed form takes nothing from autograd.
    """
    torch.manual_seed(2)
    features = torch.randn(PROMPTS, COMPLETIONS, 3, dtype=torch.float64)
    theta = torch.randn(3, dtype=torch.float64, requires_grad=True)
    logps = torch.log_softmax(features @ theta, -1)
    first, second = all_pairs()
    loss = loss_of_pairs(logps, world.reference, first, second, beta=beta)
    (found,) = torch.autograd.grad(loss.losses.sum(), theta)

    policy = logps.detach().exp()
    score = features - (policy[..., None] * features).sum(1, keepdim=True)
    reward = beta * (logps.detach() - world.reference)
    weight = 1 / (1 + torch.exp(reward[:, first] - reward[:, second]))
    expected = -beta * (weight[..., None] * (score[:, first] - score[:, second])).sum((0, 1))
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    assert expected.abs().min() > 0.1

    ours = gradient_weight(loss.chosen_rewards, loss.rejected_rewards)
    torch.testing.assert_close(ours, weight, atol=1e-12, rtol=0)


# --- another loss's optimum ----------------------------------------------------------------------


@BETAS
def test_minimising_the_ipo_loss_leads_to_its_paper_s_optimum(world: World, beta: float) -> None:
    """pi* = pi_ref exp(p(y preferred to mu) / beta) / Z (Azar et al. 2310.12036, Psi the identity).

    Pairs are drawn from mu twice; p is bounded, so the optimum stays near pi_ref.
    """
    torch.manual_seed(3)
    mu = torch.softmax(torch.randn_like(world.reward), -1)
    first, second = all_pairs()
    preference = preference_probability(world.reward[:, :, None], world.reward[:, None, :])
    weight = mu[:, first] * mu[:, second] * preference[:, first, second]

    def loss(logps: torch.Tensor) -> torch.Tensor:
        pairs = loss_of_pairs(logps, world.reference, first, second, beta=beta, loss="ipo")
        return (weight * pairs.losses).sum()

    wins = (preference * mu[:, None, :]).sum(-1)
    expected = torch.softmax(world.reference + wins / beta, -1)
    found = minimise(loss, world.reference)
    torch.testing.assert_close(found.exp(), expected, atol=1e-7, rtol=0)
    for other in (world.reference, optimal_policy(world, beta)):
        assert (found.exp() - other.exp()).abs().amax(-1).min() > 0.001
