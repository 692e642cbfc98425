"""A world whose policies can be listed: a few outcomes a prompt, with known chances and rewards."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class World(NamedTuple):
    reference: Array  # (prompts, outcomes) pi_ref
    rewards: Array  # (prompts, outcomes)

    def of(self, prompts: Array) -> World:
        return World(self.reference[prompts], self.rewards[prompts])


def make_world(random: np.random.Generator, prompts: int, outcomes: int = 20) -> World:
    level = random.normal(size=(prompts, 1)) / 2
    return World(
        random.dirichlet(np.ones(outcomes), size=prompts),
        level + random.normal(size=(prompts, outcomes)),
    )


def log_z(world: World, beta: float) -> Array:
    best = world.rewards.max(axis=1, keepdims=True)
    total = (world.reference * np.exp((world.rewards - best) / beta)).sum(axis=1)
    return best[:, 0] / beta + np.log(total)


def best_policy(world: World, beta: float) -> Array:
    return world.reference * np.exp(world.rewards / beta - log_z(world, beta)[:, None])


def rewards_of(world: World, policy: Array) -> Array:
    return (policy * world.rewards).sum(axis=1)


def kls_of(world: World, policy: Array) -> Array:
    ratio = np.where(policy > 0, policy, 1) / np.where(policy > 0, world.reference, 1)
    return (policy * np.log(ratio)).sum(axis=1)


def best_reward(world: World, kl: float) -> float:
    """R*(kl), by halving for the common beta."""
    low, high = np.log(2e-3), np.log(1e3)
    for _ in range(60):
        middle = (low + high) / 2
        too_far = kls_of(world, best_policy(world, np.exp(middle))).mean() > kl
        low, high = (middle, high) if too_far else (low, middle)
    return float(rewards_of(world, best_policy(world, np.exp(high))).mean())


def mistaken(random: np.random.Generator, world: World, scale: float) -> World:
    """The same world with rewards that are wrong by noise of that scale."""
    error = random.normal(size=world.rewards.shape)
    return world._replace(rewards=world.rewards + scale * error)


def true_share(world: World, policy: Array) -> float:
    """A policy's gain as a share of the optimum's at its KL, exactly."""
    reference = rewards_of(world, world.reference).mean()
    best = best_reward(world, kls_of(world, policy).mean())
    return float((rewards_of(world, policy).mean() - reference) / (best - reference))


def draw(random: np.random.Generator, policy: Array, count: int) -> NDArray[np.int64]:
    """(prompts, count) outcomes."""
    below = policy.cumsum(axis=1)[:, None, :-1]
    return (random.random((len(policy), count))[:, :, None] > below).sum(axis=2)


def drawn_rewards(random: np.random.Generator, world: World, count: int) -> Array:
    """(prompts, count) rewards of draws of pi_ref."""
    return np.take_along_axis(world.rewards, draw(random, world.reference, count), axis=1)
