"""Shares of the optimum: worked cases, what is refused, and the coverage of the intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from enumerated import (
    World,
    best_policy,
    best_reward,
    draw,
    drawn_rewards,
    kls_of,
    make_world,
    mistaken,
    rewards_of,
    true_share,
)

from betaflow.evaluation.bootstrap import mean_interval, percentile_interval
from betaflow.evaluation.frontier import (
    Area,
    area_difference,
    area_fraction,
    ceiling,
    fraction_of_optimum,
    hull_at,
    prompt_means,
    prompt_weights,
)
from betaflow.evaluation.optimum import Optimum, reward_at, tilt, trace

RANDOM = np.random.default_rng(0)
WORLD = make_world(RANDOM, prompts=40)
DRAWN = drawn_rewards(RANDOM, WORLD, 2000)
FOUND = trace(DRAWN)
PROMPTS = np.array([f"p{i:02d}" for i in range(40)])


def exact_arm(beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Expected reward and KL of pi* at beta on each prompt."""
    policy = best_policy(WORLD, beta)
    return rewards_of(WORLD, policy), kls_of(WORLD, policy)


def test_the_optimum_itself_scores_one_and_half_its_gain_one_half() -> None:
    reward, kl = exact_arm(0.8)
    found = fraction_of_optimum(reward, kl, PROMPTS, FOUND, PROMPTS)
    assert found.note == ""
    assert found.fraction.estimate == pytest.approx(1, abs=0.03)
    assert found.fraction.low < 1 < found.fraction.high
    assert (found.reward, found.kl) == pytest.approx((reward.mean(), kl.mean()))
    assert found.optimum == pytest.approx(best_reward(WORLD, kl.mean()), abs=0.03)
    half = (reward + FOUND.reference) / 2
    halved = fraction_of_optimum(half, kl, PROMPTS, FOUND, PROMPTS).fraction
    assert halved.estimate == pytest.approx(found.fraction.estimate / 2)


def test_an_arm_no_better_than_pi_ref_scores_zero_and_a_worse_one_less() -> None:
    kl = np.full(40, 0.5)
    assert fraction_of_optimum(
        FOUND.reference, kl, PROMPTS, FOUND, PROMPTS
    ).fraction == pytest.approx((0, 0, 0, 0), abs=1e-12)
    worse = fraction_of_optimum(FOUND.reference - 1, kl, PROMPTS, FOUND, PROMPTS).fraction
    assert worse.high < 0


def test_a_shift_of_the_reward_changes_nothing() -> None:
    reward, kl = exact_arm(1.0)
    shifted = FOUND._replace(
        tilted=FOUND.tilted._replace(reward=FOUND.tilted.reward + 50),
        reference=FOUND.reference + 50,
    )
    before = fraction_of_optimum(reward, kl, PROMPTS, FOUND, PROMPTS)
    after = fraction_of_optimum(reward + 50, kl, PROMPTS, shifted, PROMPTS)
    assert after.fraction == pytest.approx(before.fraction)


def test_samples_belong_to_their_prompts_whatever_the_order() -> None:
    reward, kl = (np.repeat(values, 3) for values in exact_arm(1.0))
    reward = reward + RANDOM.normal(size=120)
    clusters = np.repeat(PROMPTS, 3)
    order, rows = RANDOM.permutation(120), RANDOM.permutation(40)
    turned = Optimum(
        FOUND.betas,
        type(FOUND.tilted)(*(values[rows] for values in FOUND.tilted)),
        FOUND.reference[rows],
    )
    one = fraction_of_optimum(reward, kl, clusters, FOUND, PROMPTS)
    other = fraction_of_optimum(reward[order], kl[order], clusters[order], turned, PROMPTS[rows])
    assert other.fraction.estimate == pytest.approx(one.fraction.estimate)
    assert other.fraction.standard_error == pytest.approx(one.fraction.standard_error, rel=0.1)


def test_beyond_the_trusted_range_there_is_a_bound_and_no_fraction() -> None:
    kl = np.full(40, FOUND.trusted_kl + 1)
    found = fraction_of_optimum(FOUND.reference + 1, kl, PROMPTS, FOUND, PROMPTS)
    assert "beyond" in found.note
    assert all(map(math.isnan, found.fraction))
    assert found.optimum > best_reward(WORLD, kl[0])


def test_at_no_kl_there_is_no_fraction() -> None:
    found = fraction_of_optimum(FOUND.reference, np.zeros(40), PROMPTS, FOUND, PROMPTS)
    assert "no KL" in found.note
    assert math.isnan(found.fraction.estimate)
    flat = trace(np.full((40, 64), 0.1))
    found = fraction_of_optimum(np.full(40, 0.1), np.ones(40), PROMPTS, flat, PROMPTS)
    assert "no KL" in found.note
    # A mean KL above 0 only by luck: a fraction, with no interval.
    kl = np.where(np.arange(40) == 0, 4.0, -0.05)
    found = fraction_of_optimum(FOUND.reference + 0.1, kl, PROMPTS, FOUND, PROMPTS)
    assert found.fraction.estimate > 0
    assert math.isnan(found.fraction.low)


def test_a_single_prompt_has_a_fraction_but_no_interval() -> None:
    found = trace(drawn_rewards(RANDOM, WORLD, 500)[:1])
    share = fraction_of_optimum([found.reference[0] + 0.1], [0.5], ["a"], found, ["a"]).fraction
    assert 0 < share.estimate < 1
    assert all(map(math.isnan, share[1:]))
    assert np.isnan(ceiling(found).low).all()


def test_arm_and_draws_must_cover_the_same_prompts() -> None:
    np.testing.assert_array_equal(
        prompt_means([1.0, 3.0, 8.0], ["b", "b", "a"], ["b", "a"]), [2.0, 8.0]
    )
    for clusters in (["a", "a"], ["a", "c"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match="differ"):
            prompt_means(np.ones(len(clusters)), clusters, ["a", "b"])
    with pytest.raises(ValueError, match="twice"):
        prompt_means([1.0], ["a"], ["a", "a"])
    with pytest.raises(ValueError, match="NaN"):
        prompt_means([math.nan, 1.0], ["a", "b"], ["a", "b"])


def test_ceiling_is_the_curve_inside_its_band() -> None:
    found = ceiling(FOUND, points=30)
    np.testing.assert_allclose(found.reward, reward_at(FOUND, found.kl))
    assert (found.low < found.reward).all() and (found.reward < found.high).all()
    assert (found.kl[0], found.kl[-1]) == (0, pytest.approx(FOUND.trusted_kl))
    assert (np.diff(found.ess) <= 0).all()
    assert found.ess[0] > 1990 and 30 <= found.ess[-1] < 33
    # Every point is pi* of one beta: what `tilt` finds of that beta itself.
    assert (found.beta[0], found.log_z[0]) == (np.inf, 0.0)
    inside = (found.kl > 0.2) & (found.kl < 0.9 * found.kl[-1])
    tilted = tilt(DRAWN, found.beta[inside])
    np.testing.assert_allclose(found.reward[inside], tilted.reward.mean(axis=0), atol=2e-3)
    np.testing.assert_allclose(found.log_z[inside], tilted.log_z.mean(axis=0), atol=2e-3)
    wide = ceiling(FOUND, points=30, confidence=0.99)
    assert (wide.high - wide.low > found.high - found.low).all()


def test_resampling_is_that_of_mean_interval() -> None:
    values = RANDOM.normal(size=25)
    weights = prompt_weights(25, 700, seed=4)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    ours = percentile_interval(float(values.mean()), weights @ values, 25, 0.9)
    assert ours == pytest.approx(mean_interval(values, resamples=700, confidence=0.9, seed=4))


def test_hull_by_hand() -> None:
    # (2, 3) lies over (1, 1), under which the chord from (0, 0) passes; (4, 2) is below the best.
    kl, gain = [4.0, 1.0, 2.0, 6.0, -0.1, 0.5], [2.0, 1.0, 3.0, 4.0, 9.0, -1.0]
    np.testing.assert_allclose(
        hull_at(kl, gain, [0.0, 1.0, 2.0, 4.0, 6.0, 99.0]), [0, 1.5, 3, 3.5, 4, 4]
    )
    np.testing.assert_array_equal(hull_at([1.0, 2.0], [-1.0, -2.0], [0.0, 1.0]), [0, 0])
    np.testing.assert_array_equal(hull_at([2.0, 2.0], [1.0, 2.0], [1.0, 3.0]), [1, 2])


def test_area_of_optimal_arms_is_all_and_of_half_the_gain_half() -> None:
    reward, kl = (
        np.array(part) for part in zip(*map(exact_arm, np.geomspace(20, 0.3, 30)), strict=True)
    )
    full = area_fraction(reward, kl, FOUND, 0.05, 1.5)
    assert (full.low_kl, full.high_kl) == (0.05, 1.5)
    assert full.fraction.estimate == pytest.approx(1, abs=0.03)
    half = area_fraction((reward + FOUND.reference) / 2, kl, FOUND, 0.05, 1.5).fraction
    assert half.estimate == pytest.approx(full.fraction.estimate / 2)
    none = area_fraction(np.tile(FOUND.reference - 1, (2, 1)), kl[-2:], FOUND, 0.05, 1.5)
    assert none.fraction.estimate == 0


def test_area_of_one_arm_by_hand() -> None:
    # One arm: a straight line from pi_ref to it, then level.
    kl = np.full((1, 40), 0.4)
    found = area_fraction(FOUND.reference[None, :] + 0.3, kl, FOUND, 0.0, 1.0)
    at = np.linspace(0, 1, 20_001)
    best = (reward_at(FOUND, at) - FOUND.reference.mean()).mean()
    assert found.fraction.estimate == pytest.approx((0.3 * 0.4 / 2 + 0.3 * 0.6) / best, rel=5e-3)


def test_area_keeps_to_the_trusted_range() -> None:
    reward, kl = (part[None, :] for part in exact_arm(0.8))
    cut = area_fraction(reward, kl, FOUND, 0.1, 50.0, resamples=50)
    assert cut.high_kl == FOUND.trusted_kl
    assert 0 < cut.fraction.estimate < 1
    outside = area_fraction(reward, kl, FOUND, FOUND.trusted_kl + 1, 50.0)
    assert all(map(math.isnan, outside.fraction))
    with pytest.raises(ValueError, match="range"):
        area_fraction(reward, kl, FOUND, 1.0, 1.0)
    with pytest.raises(ValueError, match="arms by"):
        area_fraction(reward[:, :3], kl[:, :3], FOUND, 0.1, 1.0)
    with pytest.raises(ValueError, match="NaN"):
        area_fraction(reward * math.nan, kl, FOUND, 0.1, 1.0)


def test_coverage_of_the_fraction_and_of_the_ceiling() -> None:
    """400 experiments of 48 prompts drawn from 400, 256 draws of pi_ref, 4 samples of the arm."""
    random = np.random.default_rng(10)
    world = make_world(random, prompts=400)
    wrong = mistaken(random, world, 0.7)
    policy = best_policy(wrong, 1.0)
    kl = kls_of(world, policy).mean()
    best = best_reward(world, kl)
    true = true_share(world, policy)
    assert 0.7 < true < 0.9
    prompts = np.arange(48)
    fractions, ceilings, estimates = 0, 0, []
    for experiment in range(400):
        picked = random.integers(0, 400, 48)
        part, arm = world.of(picked), policy[picked]
        found = trace(drawn_rewards(random, part, 256))
        samples = draw(random, arm, 4)
        rewards = np.take_along_axis(part.rewards, samples, axis=1)
        kls = np.take_along_axis(np.log(arm / part.reference), samples, axis=1)
        share = fraction_of_optimum(
            rewards.ravel(), kls.ravel(), np.repeat(prompts, 4), found, prompts,
            resamples=300, seed=experiment,
        ).fraction  # fmt: skip
        fractions += share.low <= true <= share.high
        estimates.append(share.estimate)
        weights = prompt_weights(48, 300, experiment)
        band = reward_at(found, np.full((300, 1), kl), weights)[:, 0]
        curve = percentile_interval(float(reward_at(found, kl)), band, 48, 0.95)
        ceilings += curve.low <= best <= curve.high
    assert 0.93 <= fractions / 400 <= 0.97
    assert 0.93 <= ceilings / 400 <= 0.97
    assert np.mean(estimates) == pytest.approx(true, abs=0.01)


LOW, HIGH = 0.05, 1.0  # nats: of the areas whose coverage is simulated


def true_area(world: World, policies: list[np.ndarray]) -> float:
    """A method's share of the optimum's area, exactly."""
    reference = rewards_of(world, world.reference).mean()
    at = np.linspace(LOW, HIGH, 100)
    kls = [kls_of(world, policy).mean() for policy in policies]
    gains = [rewards_of(world, policy).mean() - reference for policy in policies]
    best = np.array([best_reward(world, each) for each in at]) - reference
    return float(hull_at(kls, gains, at).mean() / best.mean())


def areas_seen(
    random: np.random.Generator,
    world: World,
    methods: list[list[np.ndarray]],
    samples: int,
    experiment: int,
) -> list[Area]:
    """Every method's area in an experiment: 48 prompts, and as many samples of each arm."""
    picked = random.integers(0, 400, 48)
    part = world.of(picked)
    found = trace(drawn_rewards(random, part, 256))
    return [
        area_fraction(
            [np.take_along_axis(part.rewards, draw(random, policy[picked], samples), axis=1)
             .mean(axis=1) for policy in policies],
            [kls_of(part, policy[picked]) for policy in policies],
            found, LOW, HIGH, resamples=200, seed=experiment,
        )
        for policies in methods
    ]  # fmt: skip


def test_coverage_of_the_area_with_many_noisy_arms() -> None:
    """200 experiments with 8 arms of 2 samples on 48 prompts: the hull of noise lies high."""
    random = np.random.default_rng(11)
    world = make_world(random, prompts=400)
    wrong = mistaken(random, world, 0.7)
    policies = [best_policy(wrong, beta) for beta in np.geomspace(3, 0.7, 8)]
    true = true_area(world, policies)
    covered, estimates = 0, []
    for experiment in range(200):
        (area,) = areas_seen(random, world, [policies], 2, experiment)
        covered += area.fraction.low <= true <= area.fraction.high
        estimates.append(area.fraction.estimate)
    assert 0.91 <= covered / 200 <= 0.98
    assert np.mean(estimates) == pytest.approx(true, abs=0.03)


def test_coverage_of_the_difference_of_areas() -> None:
    """200 experiments with two methods of 4 arms, 48 prompts: the prompts' luck is both's."""
    random = np.random.default_rng(12)
    world = make_world(random, prompts=400)
    errors = random.normal(size=(2, *world.rewards.shape))
    methods = [
        [best_policy(world._replace(rewards=world.rewards + scale * error), beta)
         for beta in np.geomspace(3, 0.7, 4)]
        for scale, error in zip((0.3, 1.0), errors, strict=True)
    ]  # fmt: skip
    one, other = (true_area(world, policies) for policies in methods)
    true = one - other
    assert true > 0.1
    covered = 0
    for experiment in range(200):
        areas = areas_seen(random, world, methods, 8, experiment)
        difference = area_difference(areas[0], areas[1], 48)
        covered += difference.low <= true <= difference.high
    assert 0.91 <= covered / 200 <= 0.98
    assert area_difference(areas[0], areas[0], 48) == (0, 0, 0, 0)
    cut = areas[1]._replace(high_kl=0.5)
    assert all(map(math.isnan, area_difference(areas[0], cut, 48)))
