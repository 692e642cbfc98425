"""Power: textbook numbers, what makes it easier or harder, and the real win rate's own."""

from __future__ import annotations

import numpy as np
import pytest
from simulated import verdicts

from betaflow.evaluation import detection_power, pilot, prompts_needed, win_rate


def test_textbook_sample_size() -> None:
    # One proportion against 1/2, alpha 5 % two-sided, power 80 %, p = 0.6:
    # ((1.96 sqrt(0.25) + 0.8416 sqrt(0.24)) / 0.1)^2 = 193.8 (Fleiss, Levin and Paik 2003, 2.5).
    assert prompts_needed(0.6) == 194
    assert detection_power(194, 0.6) >= 0.8 > detection_power(193, 0.6)


def test_of_no_effect_is_the_chance_of_a_false_one() -> None:
    assert detection_power(200, 0.5) == pytest.approx(0.025)
    assert detection_power(200, 0.5, ties=0.5, completions=3, correlation=0.2) == pytest.approx(
        0.025, abs=0.001
    )


def test_what_makes_it_easier_and_harder() -> None:
    assert prompts_needed(0.7) < prompts_needed(0.6) < prompts_needed(0.6, power=0.9)
    assert prompts_needed(0.6) < prompts_needed(0.6, confidence=0.99)
    assert prompts_needed(0.6, ties=0.5) < prompts_needed(0.6)
    assert prompts_needed(0.6, completions=4) == pytest.approx(194 / 4, abs=1)
    half = prompts_needed(0.6, completions=4, correlation=0.5)  # a design effect of 2.5
    assert half == pytest.approx(194 / 4 * 2.5, abs=1)
    assert prompts_needed(0.6, completions=4, correlation=1.0) == 194
    assert prompts_needed(1.0) == 4  # Wilson's lower end at n of n: n / (n + 1.96^2)
    assert prompts_needed(1.0, completions=20) == 4  # which holds whatever the number of draws


def test_more_completions_do_not_stand_for_prompts() -> None:
    # No lower end is above p n / (n + 1.96^2): over 20 prompts a rate of 0.596 gives one half.
    edge = (1 + 1.96**2 / 20) / 2
    assert detection_power(20, edge, completions=10_000) == pytest.approx(0.5, abs=0.01)
    assert detection_power(20, 0.55, completions=10_000) < 1e-6
    least = 1.96**2 / (2 * 0.65 - 1)  # prompts of which a rate of 0.65 gives one half: 12.8
    assert prompts_needed(0.65, completions=10_000) == int(least) + 1
    assert prompts_needed(0.65, completions=20) == 16  # and not the 85 / 20 that Wilson's end takes


def test_what_no_number_of_prompts_shows_is_refused() -> None:
    with pytest.raises(ValueError, match="not above one half"):
        prompts_needed(0.5)
    with pytest.raises(ValueError, match="ties"):
        prompts_needed(0.9, ties=0.5)
    with pytest.raises(ValueError, match="completion"):
        prompts_needed(0.6, completions=0)
    with pytest.raises(ValueError, match="power"):
        prompts_needed(0.6, power=1.0)
    with pytest.raises(ValueError, match="two prompts"):
        detection_power(1, 0.6)


def test_pilot_by_hand() -> None:
    # Prompts of (1, 1), (1, 0), (0, 1/2), (1/2, 1): the mean is 5/8, two of eight verdicts ties.
    # Between: 2 (9/64 + 1/64 + 9/64 + 1/64) / 3 = 5/24; within: (1/2 + 1/8 + 1/8) / 4 = 3/16.
    found = pilot([1, 1, 1, 0, 0, 0.5, 0.5, 1], list("aabbccdd"))
    assert found[:3] == (0.625, 0.25, 2)
    assert found.correlation == pytest.approx((5 / 24 - 3 / 16) / (5 / 24 + 3 / 16))


def test_pilot_at_the_edges() -> None:
    assert pilot([1.0, 0.0, np.nan]) == (0.5, 0.0, 1.0, 0.0)
    assert pilot([1.0, 0.0] * 5, np.repeat(np.arange(5), 2)).correlation == 0  # negative
    assert pilot([1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1]).correlation == 1
    assert pilot([0.5] * 4, [0, 0, 1, 1]) == (0.5, 1.0, 2.0, 0.0)
    assert pilot([0.9] * 4).ties == pytest.approx(4 * 0.9 * 0.1)  # soft labels without variance
    with pytest.raises(ValueError, match="no preference"):
        pilot([np.nan])
    with pytest.raises(ValueError, match="between 0 and 1"):
        pilot([2.0])


def test_pilot_finds_the_correlation_that_the_win_rate_s_error_has() -> None:
    won = verdicts(np.random.default_rng(0), np.full((4000, 3), 0.6), 0.5, ties=0.2)
    found = pilot(won.ravel(), np.repeat(np.arange(4000), 3))
    assert found[:3] == pytest.approx((0.6, 0.2, 3), abs=0.01)
    assert found.correlation == pytest.approx(np.corrcoef(won.T)[0, 1], abs=0.03)
    error = win_rate(won.ravel(), np.repeat(np.arange(4000), 3)).standard_error
    variance = (0.24 - 0.05) * (1 + 2 * found.correlation) / 12_000
    assert error == pytest.approx(np.sqrt(variance), rel=0.04)


@pytest.mark.parametrize(
    "rate, completions, ties, power",
    [(0.62, 1, 0.0, 0.8), (0.65, 2, 0.2, 0.8), (0.75, 1, 0.0, 0.9)],
)
def test_so_many_prompts_show_it_as_often_as_promised(
    rate: float, completions: int, ties: float, power: float
) -> None:
    """1,500 experiments with the real `win_rate`, planned from a large pilot."""
    random = np.random.default_rng(3)
    first = verdicts(random, np.full((20_000, completions), rate), 0.5, ties)
    known = pilot(first.ravel(), np.repeat(np.arange(20_000), completions))
    prompts = prompts_needed(
        rate, power=power, ties=ties, completions=completions, correlation=known.correlation
    )
    prompt, seen = np.repeat(np.arange(prompts), completions), 0
    for experiment in range(1500):
        won = verdicts(random, np.full((prompts, completions), rate), 0.5, ties)
        seen += win_rate(won.ravel(), prompt, resamples=200, seed=experiment).low > 0.5
    assert seen / 1500 == pytest.approx(power, abs=0.03)


@pytest.mark.parametrize(
    "prompts, completions, rate, correlation",
    [(20, 40, 0.55, 0.0), (20, 40, 0.6, 0.0), (20, 40, 0.62, 0.1), (8, 10, 0.75, 0.0)],
)
def test_the_power_is_right_where_prompts_are_few_for_their_completions(
    prompts: int, completions: int, rate: float, correlation: float
) -> None:
    """600 experiments with the real `win_rate`; their standard error is 0.02 at most."""
    random = np.random.default_rng(4)
    first = verdicts(random, np.full((10_000, completions), rate), correlation)
    known = pilot(first.ravel(), np.repeat(np.arange(10_000), completions))
    prompt, seen = np.repeat(np.arange(prompts), completions), 0
    for experiment in range(600):
        won = verdicts(random, np.full((prompts, completions), rate), correlation)
        seen += win_rate(won.ravel(), prompt, resamples=100, seed=experiment).low > 0.5
    promised = detection_power(
        prompts, rate, completions=completions, correlation=known.correlation
    )
    assert seen / 600 == pytest.approx(promised, abs=0.05)
