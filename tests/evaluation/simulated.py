"""Verdicts with known chances, alike within a prompt."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

GRID = np.linspace(-8, 8, 4001)
NORMAL = np.array([NormalDist().cdf(x) for x in GRID])


def correlated_uniforms(
    random: np.random.Generator, prompts: int, shape: tuple[int, ...], correlation: float
) -> np.ndarray:
    """(prompts, *shape) uniform numbers: normal ones correlated within a prompt, by their ranks."""
    shared = random.normal(size=(prompts, *(1 for _ in shape)))
    own = random.normal(size=(prompts, *shape))
    mixed = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
    return np.interp(mixed, GRID, NORMAL)


def verdicts(
    random: np.random.Generator, chances: np.ndarray, correlation: float, ties: float = 0.0
) -> np.ndarray:
    """0, 1/2 or 1 with means `chances`, (prompts, ...), of which the share `ties` is ties."""
    uniform = correlated_uniforms(random, len(chances), chances.shape[1:], correlation)
    return (uniform < chances - ties / 2) / 2 + (uniform < chances + ties / 2) / 2


# By name, labels and the share of each: soft ones, and ties, near 1.
LABELS = {
    "0.99, and 0.2 for 3 %": ([0.99, 0.2], [0.97, 0.03]),
    "0.9, and 0.2 for 3 %": ([0.9, 0.2], [0.97, 0.03]),
    "wins, 3 % ties": ([1.0, 0.5], [0.97, 0.03]),
    "wins, 1 % ties": ([1.0, 0.5], [0.99, 0.01]),
    "wins, 3 % ties, 2 % losses": ([1.0, 0.5, 0.0], [0.95, 0.03, 0.02]),
    "0.99, 0.95, 0.7, 0.1": ([0.99, 0.95, 0.7, 0.1], [0.8, 0.14, 0.04, 0.02]),
}


def labelled(
    random: np.random.Generator,
    prompts: int,
    completions: int,
    labels: list[float],
    shares: list[float],
    correlation: float = 0.3,
) -> np.ndarray:
    """(prompts, completions) of these labels, each with its share."""
    uniform = correlated_uniforms(random, prompts, (completions,), correlation)
    return np.array(labels)[np.searchsorted(np.cumsum(shares)[:-1], uniform)]


def sigmoid(x: np.ndarray | float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x)))


def judged_by_length(
    random: np.random.Generator,
    prompts: int,
    completions: int,
    rate: float,
    bias: float,
    shift: float,
    correlation: float = 0.3,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Verdicts of a judge who favours length, each (prompts * completions,).

    Args:
        rate: the win rate at equal lengths.
        bias: log-odds for tanh(difference / its standard deviation).
        shift: the mean difference, in its standard deviations.

    Returns:
        Preferences, differences of length (100 tokens their standard deviation), prompts.
    """
    size = (prompts, completions)
    longer = shift + np.sqrt(0.5) * (random.normal(size=(prompts, 1)) + random.normal(size=size))
    chances = sigmoid(np.log(rate / (1 - rate)) + bias * np.tanh(longer))
    won = verdicts(random, chances, correlation)
    return won.ravel(), 100 * longer.ravel(), np.repeat(np.arange(prompts), completions)
