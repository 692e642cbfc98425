"""Luck taken out of means over draws: by hand, what is left alone, what intervals become."""

from __future__ import annotations

import numpy as np
import pytest
from enumerated import best_policy, draw, drawn_rewards, kls_of, make_world, mistaken, true_share

from betaflow.evaluation.control_variate import FEWEST, without_luck
from betaflow.evaluation.frontier import fraction_of_optimum
from betaflow.evaluation.optimum import trace

RANDOM = np.random.default_rng(0)


def test_what_luck_explains_is_taken_out_and_no_more() -> None:
    groups = np.repeat(np.arange(20), 4)
    level, luck = np.repeat(RANDOM.normal(size=20), 4), RANDOM.normal(size=80)
    np.testing.assert_allclose(without_luck(level + 3 * luck, luck, groups), level, atol=1e-12)
    # The slope is within groups: one between them, of prompts that differ, is not luck.
    between = np.repeat(RANDOM.normal(size=20), 4)
    rest = np.tile([1.0, -1.0, -1.0, 1.0], 20)
    own = np.tile([1.0, 1.0, -1.0, -1.0], 20)  # orthogonal to `rest` within each group
    np.testing.assert_allclose(
        without_luck(5 * between + rest + 2 * own, between + own, groups), rest + 3 * between
    )


def test_values_are_left_alone_where_nothing_tells_the_luck() -> None:
    values, luck = RANDOM.normal(size=60), RANDOM.normal(size=60)
    few = np.arange(60) % (60 - FEWEST + 1)
    assert without_luck(values, luck, few).tolist() == values.tolist()
    assert without_luck(values, luck, few % 30).tolist() != values.tolist()
    holes = np.where(np.arange(60) == 3, np.nan, values)
    np.testing.assert_array_equal(without_luck(holes, luck, np.zeros(60)), holes)
    for unknown in (np.full(60, np.nan), np.zeros(60), np.where(np.arange(60) == 3, np.nan, luck)):
        assert without_luck(values, unknown, np.zeros(60)).tolist() == values.tolist()


@pytest.mark.parametrize("samples", [2, 16])
def test_shares_of_the_optimum_lose_noise_and_keep_their_mean_and_coverage(samples: int) -> None:
    """400 experiments of 48 prompts drawn from 400; the arm is the optimum of another reward."""
    random = np.random.default_rng(samples)
    world = make_world(random, prompts=400)
    policy = best_policy(mistaken(random, world, 0.4), 0.8)
    true = true_share(world, policy)
    names = np.arange(48)
    groups = np.repeat(names, samples)
    plain, adjusted, covered = [], [], 0
    for experiment in range(400):
        picked = random.integers(0, 400, 48)
        part, arm = world.of(picked), policy[picked]
        found = trace(drawn_rewards(random, part, 512))
        drawn = draw(random, arm, samples)
        rewards = np.take_along_axis(part.rewards, drawn, axis=1).ravel()
        ratios = np.take_along_axis(np.log(arm / part.reference), drawn, axis=1).ravel()
        kls = np.repeat(kls_of(part, arm), samples)  # of one state: a single token is drawn
        shares = [
            fraction_of_optimum(told, kls, groups, found, names, resamples=300, seed=experiment)
            for told in (rewards, without_luck(rewards, ratios - kls, groups))
        ]
        plain.append(shares[0].fraction.estimate)
        adjusted.append(shares[1].fraction.estimate)
        covered += shares[1].fraction.low <= true <= shares[1].fraction.high
    assert 0.93 <= covered / 400 <= 0.97
    error = np.std(adjusted) / 20
    assert abs(np.mean(adjusted) - true) < 4 * error + 0.01
    assert np.std(adjusted) < 0.8 * np.std(plain)
