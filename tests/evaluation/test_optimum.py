"""The optimum: against worlds that can be listed, its bias, its curve and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from enumerated import (
    World,
    best_policy,
    best_reward,
    drawn_rewards,
    kls_of,
    log_z,
    make_world,
    rewards_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from betaflow.evaluation.optimum import (
    BETAS,
    Optimum,
    Tilted,
    harmonic_mean,
    kl_at,
    reward_at,
    tilt,
    trace,
)


def exact_optimum(world: World) -> Optimum:
    """What `trace` would return for endless draws."""
    betas = np.geomspace(30, 0.02, BETAS)
    policies = [best_policy(world, beta) for beta in betas]
    tilted = Tilted(
        np.stack([rewards_of(world, policy) for policy in policies], axis=1),
        np.stack([kls_of(world, policy) for policy in policies], axis=1),
        np.stack([log_z(world, beta) for beta in betas], axis=1),
        np.ones((len(world.rewards), len(betas))),
    )
    return Optimum(betas, tilted, rewards_of(world, world.reference))


WORLD = make_world(np.random.default_rng(0), prompts=6)
EXACT = exact_optimum(WORLD)


def test_two_outcomes_by_hand() -> None:
    # Rewards 0 and log 3 at beta 1: Z = (1 + 3) / 2, pi* = (1/4, 3/4); n large enough to count as
    # endless.
    found = tilt([[0.0, math.log(3)] * 50_000], [1.0])
    assert found.log_z[0, 0] == pytest.approx(math.log(2), abs=1e-4)
    assert found.reward[0, 0] == pytest.approx(0.75 * math.log(3), abs=1e-4)
    assert found.kl[0, 0] == pytest.approx(0.75 * math.log(3) - math.log(2), abs=1e-4)
    assert found.ess[0, 0] == pytest.approx(
        100_000 * 0.8
    )  # 1 / sum w^2 = n (1 + 3)^2 / (2 (1 + 9))


@pytest.mark.parametrize("beta", [2.0, 1.0, 0.5])
def test_draws_tend_to_the_exact_optimum(beta: float) -> None:
    rewards = drawn_rewards(np.random.default_rng(1), WORLD, 40_000)
    found, policy = tilt(rewards, [beta]), best_policy(WORLD, beta)
    np.testing.assert_allclose(found.reward[:, 0], rewards_of(WORLD, policy), atol=0.03)
    np.testing.assert_allclose(found.kl[:, 0], kls_of(WORLD, policy), atol=0.03)
    np.testing.assert_allclose(found.log_z[:, 0], log_z(WORLD, beta), atol=0.03)


def test_correction_takes_the_bias_away() -> None:
    # 3,000 times 200 draws of one prompt at beta 0.5, an ESS of about 34: what weighting alone
    # gives misses log Z and the reward, the corrected values hit them.
    rows = np.full(3000, 4)
    one, beta = WORLD.of(rows), 0.5
    rewards = drawn_rewards(np.random.default_rng(2), one, 200)
    raw = np.exp(rewards / beta)
    weights = raw / raw.sum(axis=1, keepdims=True)
    found, policy = tilt(rewards, [beta]), best_policy(one, beta)
    for plain, corrected, true in [
        (np.log(raw.mean(axis=1)), found.log_z[:, 0], log_z(one, beta)[0]),
        ((weights * rewards).sum(axis=1), found.reward[:, 0], rewards_of(one, policy)[0]),
    ]:
        error = corrected.std() / math.sqrt(3000)
        assert plain.mean() < true - 6 * error
        assert abs(corrected.mean() - true) < 3 * error


def test_reward_at_a_given_kl_has_little_bias_as_far_as_it_is_trusted() -> None:
    # Gaussian rewards: log Z = 1 / (2 beta^2), so R*(k) = sqrt(2 k).
    found = trace(np.random.default_rng(3).normal(size=(100, 1024)))
    kl = found.trusted_kl * np.array([0.1, 0.5, 1.0])
    assert found.trusted_kl > 1.8
    np.testing.assert_allclose(reward_at(found, kl), np.sqrt(2 * kl), rtol=0.01)


def test_the_means_of_falling_betas_agree_with_each_other() -> None:
    betas = np.array([2.0, 1.0, 0.5, 0.3])
    found = tilt(drawn_rewards(np.random.default_rng(4), WORLD, 2000), betas)
    np.testing.assert_allclose(found.reward - betas * found.kl, betas * found.log_z)
    assert (np.diff(found.reward.mean(axis=0)) > 0).all()
    assert (np.diff(found.kl.mean(axis=0)) > 0).all()
    ess = [harmonic_mean(column) for column in found.ess.T]
    assert (np.diff(ess) < 0).all()
    assert (found.ess.min(axis=0) >= 1).all() and (found.ess.min(axis=0) < ess).all()
    assert max(ess) < 2000


def test_ess_is_all_draws_at_a_large_beta_and_the_best_ones_at_a_small() -> None:
    found = tilt([[0.0, 1.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]], [1e9, 1e-3])
    np.testing.assert_allclose(found.ess, [[4, 2], [4, 4]])


def test_trace_stops_where_the_effective_sample_size_runs_out() -> None:
    rewards = np.random.default_rng(5).normal(size=(20, 500))
    near, far = trace(rewards, minimum_ess=60), trace(rewards, minimum_ess=20)
    assert harmonic_mean(near.tilted.ess[:, -1]) == pytest.approx(60, rel=1e-3)
    assert harmonic_mean(far.tilted.ess[:, -1]) == pytest.approx(20, rel=1e-3)
    assert near.trusted_kl < far.trusted_kl


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 10), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_no_policy_lies_above_the_curve(seed: int, beta: float, blend: float) -> None:
    random = np.random.default_rng(seed)
    wrong = World(WORLD.reference, WORLD.rewards + blend * random.normal(size=WORLD.rewards.shape))
    uneven = beta * np.exp(blend * random.normal(size=len(WORLD.rewards)))
    policy = np.concatenate(
        [best_policy(wrong.of([i]), each) for i, each in enumerate(uneven)]  # type: ignore[arg-type]
    )
    kl, reward = kls_of(WORLD, policy).mean(), rewards_of(WORLD, policy).mean()
    assert reward <= best_reward(WORLD, kl) + 1e-9
    assert reward <= reward_at(EXACT, kl) + 1e-4


@pytest.mark.parametrize("beta", [20.0, 3.3, 0.77, 0.31, 0.11])
def test_the_curve_is_exact_between_its_betas(beta: float) -> None:
    policy = best_policy(WORLD, beta)
    found = reward_at(EXACT, kls_of(WORLD, policy).mean())
    assert found == pytest.approx(rewards_of(WORLD, policy).mean(), abs=2e-5)


@pytest.mark.parametrize("beta", [0.05, 0.31, 1.7, 12.0, 200.0])
def test_a_prompt_s_kl_at_a_mean_kl_is_the_best_policy_s(beta: float) -> None:
    exact = kls_of(WORLD, best_policy(WORLD, beta))
    found = kl_at(EXACT, exact.mean())
    assert found.mean() == pytest.approx(exact.mean())
    np.testing.assert_allclose(found, exact, rtol=0.01, atol=1e-6)
    assert exact.max() > 1.05 * exact.min()  # else an even spread would do


def test_a_kl_that_the_draws_do_not_tell_has_no_prompts() -> None:
    assert kl_at(EXACT, 0.0).tolist() == [0.0] * 6
    kl_at(EXACT, EXACT.trusted_kl)
    for kl in (-0.1, EXACT.trusted_kl + 0.01, math.nan):
        with pytest.raises(ValueError, match="is not from 0 to"):
            kl_at(EXACT, kl)


def test_the_curve_starts_like_a_square_root() -> None:
    start = EXACT.reference.mean()
    for kl in (1e-5, 1e-4):  # before the first beta of the grid
        true = best_reward(WORLD, kl) - start
        assert reward_at(EXACT, kl) - start == pytest.approx(true, rel=0.01)


def test_the_curve_rises_and_bends_down_from_the_reference() -> None:
    found = trace(drawn_rewards(np.random.default_rng(6), WORLD, 1000))
    rewards = reward_at(found, np.linspace(0, found.trusted_kl, 200))
    assert rewards[0] == pytest.approx(found.reference.mean())
    assert (np.diff(rewards) > 0).all()
    assert (np.diff(rewards, 2) < 0).all()
    assert reward_at(found, -0.1) == pytest.approx(found.reference.mean())


def test_beyond_the_trusted_range_is_an_upper_bound() -> None:
    cut = EXACT._replace(
        betas=EXACT.betas[:40], tilted=Tilted(*(part[:, :40] for part in EXACT.tilted))
    )
    kl = np.linspace(cut.trusted_kl, 2, 9)
    bound, true = reward_at(cut, kl), np.array([best_reward(WORLD, each) for each in kl])
    assert bound[0] == pytest.approx(true[0])
    assert (bound[1:] > true[1:]).all()
    np.testing.assert_allclose(np.diff(bound), cut.betas[-1] * np.diff(kl))


def test_weights_stand_for_repeated_prompts() -> None:
    rewards = drawn_rewards(np.random.default_rng(7), WORLD, 300)
    found, picked = trace(rewards), [0, 0, 3, 5, 5, 5]
    weights = np.bincount(picked, minlength=6)[None, :] / 6
    part = Tilted(*(values[picked] for values in found.tilted))
    again = Optimum(found.betas, part, found.reference[picked])
    kl = np.array([0.0, 0.01, 0.3, 0.9])
    np.testing.assert_allclose(reward_at(found, kl[None, :], weights)[0], reward_at(again, kl))


def test_a_shift_of_the_reward_shifts_and_a_scale_scales() -> None:
    rewards = drawn_rewards(np.random.default_rng(8), WORLD, 500)
    found, other = trace(rewards), trace(10 * rewards - 300)
    assert other.trusted_kl == pytest.approx(found.trusted_kl, rel=1e-4)
    kl = np.linspace(0, 0.9 * found.trusted_kl, 7)
    np.testing.assert_allclose(reward_at(other, kl), 10 * reward_at(found, kl) - 300, atol=1e-3)
    np.testing.assert_allclose(tilt(rewards - 300, [0.5]).kl, tilt(rewards, [0.5]).kl, atol=1e-9)


@pytest.mark.parametrize("same", [0.1, 0.5])  # whose variance comes out as 1e-34 and as 0
def test_equal_rewards_leave_nothing_to_gain(same: float) -> None:
    found = trace(np.full((3, 64), same))
    np.testing.assert_allclose(found.tilted.kl, 0, atol=1e-12)
    np.testing.assert_allclose(reward_at(found, [0.0, 0.5, 9.0]), same, atol=1e-9)


def test_a_single_prompt_has_a_curve() -> None:
    rewards = drawn_rewards(np.random.default_rng(9), WORLD, 500)[:1]
    found = tilt(rewards, [0.8])
    assert found.reward.item() > rewards.mean()
    assert reward_at(trace(rewards), found.kl.item()) == pytest.approx(
        found.reward.item(), abs=1e-4
    )


@pytest.mark.parametrize(
    "rewards", [[1.0, 2.0], [[]], [[1.0, math.nan]], [[1.0, math.inf]], [[[1.0]]]]
)
def test_what_is_no_matrix_of_rewards_is_refused(rewards: list) -> None:
    with pytest.raises(ValueError):
        tilt(rewards, [1.0])


def test_impossible_betas_and_too_few_draws_are_refused() -> None:
    for beta in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="beta"):
            tilt([[0.0, 1.0]], [beta])
    with pytest.raises(ValueError, match="draws a prompt"):
        trace(np.zeros((2, 20)), minimum_ess=21)
