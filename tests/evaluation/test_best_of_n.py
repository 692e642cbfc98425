"""Best-of-N: against every subset, at its ends, and under the optimum."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from betaflow.evaluation.best_of_n import best_of_n_kl, best_of_n_rewards
from betaflow.evaluation.optimum import reward_at, trace

GRADES = st.lists(st.integers(0, 4), min_size=6, max_size=6)


@given(GRADES, GRADES, st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_every_subset_counts_the_same(gold: list[int], proxy: list[int], n: int) -> None:
    subsets = list(combinations(range(6), n))
    best = np.mean([max(gold[i] for i in subset) for subset in subsets])
    assert best_of_n_rewards([gold], n)[0] == pytest.approx(best)
    chosen = []  # ties: the mean over those that share the highest proxy
    for subset in subsets:
        top = max(proxy[i] for i in subset)
        chosen.append(np.mean([gold[i] for i in subset if proxy[i] == top]))
    assert best_of_n_rewards([gold], n, [proxy])[0] == pytest.approx(np.mean(chosen))


def test_ends() -> None:
    rewards = np.random.default_rng(0).normal(size=(5, 40))
    np.testing.assert_allclose(best_of_n_rewards(rewards, 1), rewards.mean(axis=1))
    np.testing.assert_allclose(best_of_n_rewards(rewards, 40), rewards.max(axis=1))
    np.testing.assert_allclose(best_of_n_rewards(rewards, 40, -rewards), rewards.min(axis=1))


def test_rows_are_prompts_and_stay_apart() -> None:
    rewards = np.array([[0.0, 1.0, 2.0], [10.0, 10.0, 13.0]])
    np.testing.assert_allclose(best_of_n_rewards(rewards, 2), [5 / 3, 12.0])
    np.testing.assert_allclose(best_of_n_rewards(rewards, 2, [[1, 1, 1], [1, 1, 1]]), [1.0, 11.0])


def test_expected_maximum_of_many_draws() -> None:
    # The mean of the largest of n uniforms is n / (n + 1).
    rewards = np.random.default_rng(1).random((200, 1024))
    for n in (4, 64, 512):
        assert best_of_n_rewards(rewards, n).mean() == pytest.approx(n / (n + 1), abs=2e-3)


def test_kl_is_that_of_the_distribution_of_the_best() -> None:
    assert best_of_n_kl(1) == 0.0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)
    # The largest of n has density n u^(n - 1) over its rank u: the integral of its logarithm.
    u = (np.arange(1_000_000) + 0.5) / 1_000_000
    density = 8 * u**7
    assert best_of_n_kl(8) == pytest.approx((density * np.log(density)).mean(), abs=1e-4)


def test_kl_is_an_upper_bound_where_outcomes_tie() -> None:
    # Rewards 0 and 1 with chance 1/2: the best of 2 is 1 with chance 3/4.
    exact = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert exact < best_of_n_kl(2)


def test_best_of_n_lies_under_the_optimum_and_a_noisy_proxy_under_gold() -> None:
    random = np.random.default_rng(2)
    rewards = random.normal(size=(64, 2048))
    noisy = rewards + random.normal(size=rewards.shape)
    found = trace(rewards)
    for n in (2, 4, 8, 16, 24):
        gold, proxy = (best_of_n_rewards(rewards, n, by).mean() for by in (None, noisy))
        top = float(reward_at(found, best_of_n_kl(n)))
        assert best_of_n_kl(n) < found.trusted_kl
        assert rewards.mean() < proxy < gold < top
        # Choosing by a proxy of correlation 1/sqrt(2) gains that share of what gold gains.
        assert proxy / gold == pytest.approx(0.707, abs=0.02)
        assert gold > 0.9 * top


def test_order_of_draws_does_not_matter_even_with_ties() -> None:
    gold, proxy = [1.0, 5.0, 2.0], [3.0, 3.0, 0.0]
    found = {
        round(float(best_of_n_rewards([[gold[i] for i in o]], 2, [[proxy[i] for i in o]])[0]), 12)
        for o in permutations(range(3))
    }
    assert found == {3.0}  # {0,1}: 3, {0,2}: 1, {1,2}: 5


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="from 1 to 3"):
        best_of_n_rewards([[1.0, 2.0, 3.0]], 4)
    with pytest.raises(ValueError, match="from 1 to 3"):
        best_of_n_rewards([[1.0, 2.0, 3.0]], 0)
    with pytest.raises(ValueError, match="one proxy"):
        best_of_n_rewards([[1.0, 2.0]], 1, [[1.0]])
    with pytest.raises(ValueError, match="NaN"):
        best_of_n_rewards([[1.0, 2.0]], 1, [[1.0, math.nan]])
