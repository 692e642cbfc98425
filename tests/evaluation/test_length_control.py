"""Length-controlled win rates: against a slow fit, at the edges, by ranks, and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from simulated import LABELS, judged_by_length, labelled, sigmoid

from betaflow.evaluation import length_controlled_win_rate, win_rate
from betaflow.evaluation.length_control import Verdicts, _rates, _score_interval

WON, LONGER, PROMPT = judged_by_length(np.random.default_rng(0), 160, 2, 0.7, 1.5, 1.0)
EQUAL = np.full(len(WON), 50.0)


def likeliest(wins: np.ndarray, longer: np.ndarray) -> float:
    """sigma(theta) of the highest posterior, by a grid made finer round by round."""
    terms = np.tanh(longer / np.clip(longer, *np.quantile(longer, [0.01, 0.99])).std())
    centre, span = np.zeros(2), 8.0
    while span > 1e-7:
        steps = centre + span * np.stack(
            np.meshgrid(np.linspace(-1, 1, 21), np.linspace(-1, 1, 21)), axis=-1
        ).reshape(-1, 2)
        logit = steps[:, :1] + steps[:, 1:] * terms
        value = (wins * logit - np.logaddexp(0, logit)).sum(axis=1)
        value += 0.5 * steps[:, 1] - np.logaddexp(0, steps[:, 1])  # half a win and half a loss
        centre, span = steps[value.argmax()], span / 2
    return float(sigmoid(centre[0]))


@pytest.mark.parametrize("labels", ["hard", "soft", "separable"])
def test_estimate_is_the_likeliest_under_the_model(labels: str) -> None:
    random = np.random.default_rng(1)
    longer = random.normal(30, 60, 40)
    wins = {
        "hard": (random.random(40) < sigmoid(longer / 60)).astype(float),
        "soft": random.random(40),
        "separable": (longer > 20).astype(float),
    }[labels]
    found = length_controlled_win_rate(wins, longer, 0 * longer, resamples=10)
    assert found.estimate == pytest.approx(likeliest(wins, longer), abs=1e-6)


def test_two_groups_by_hand() -> None:
    # Differences of 10 and -10: terms of tanh(1) and -tanh(1), so with win rates of 0.9 and 0.7 of
    # many verdicts theta is the mean of their log-odds.
    wins = np.repeat([1.0, 0.0, 1.0, 0.0], [9000, 1000, 7000, 3000])
    longer = np.repeat([10.0, -10.0], 10_000)
    middle = (math.log(9) + math.log(7 / 3)) / 2
    found = length_controlled_win_rate(wins, longer, 0 * longer, resamples=10)
    assert found.estimate == pytest.approx(float(sigmoid(middle)), abs=1e-4)


def test_resamples_are_fits_to_the_drawn_prompts() -> None:
    weights = np.array([[3.0, 0, 1, 2], [1, 1, 1, 1]])
    wins, terms = np.array([1.0, 0.3, 0.0, 0.6]), np.array([0.9, -0.5, 0.2, -0.8])
    prior = np.array([[0.2, 1.3], [0.5, 0.5]])
    rows = np.array([0, 0, 0, 2, 3, 3])
    repeated = Verdicts(wins[rows], terms[rows], rows)
    found = _rates(weights, Verdicts(wins, terms, np.arange(4)), prior)
    assert found[0] == pytest.approx(_rates(np.ones((1, 6)), repeated, prior[:1])[0], abs=1e-12)


def test_equal_lengths_give_the_plain_win_rate() -> None:
    assert length_controlled_win_rate(WON, EQUAL, EQUAL, PROMPT) == win_rate(WON, PROMPT)
    assert length_controlled_win_rate(WON, LONGER, LONGER) == win_rate(WON)


def test_without_length_differences_the_score_interval_is_wilson_s() -> None:
    plain = win_rate(WON, PROMPT)
    same = Verdicts(WON, 0 * WON, PROMPT)
    ends = _score_interval(plain.estimate, plain.standard_error, same, 160, 0.95)
    assert ends == pytest.approx((plain.low, plain.high), abs=1e-7)
    lost = Verdicts(0 * WON, 0 * WON, PROMPT)
    plain = win_rate(0 * WON, PROMPT)
    assert _score_interval(0.0, 0.0, lost, 160, 0.95) == pytest.approx((0, plain.high), abs=1e-7)


def test_a_model_against_itself_is_one_half() -> None:
    assert length_controlled_win_rate(0 * WON + 0.5, LONGER, LONGER, PROMPT) == (0.5, 0, 0.5, 0.5)
    rate = length_controlled_win_rate(0 * WON + 0.5, LONGER, EQUAL, PROMPT).estimate
    assert rate == pytest.approx(0.5, abs=1e-12)


def test_swapping_the_sides_mirrors_everything() -> None:
    one = length_controlled_win_rate(WON, LONGER, EQUAL, PROMPT)
    other = length_controlled_win_rate(1 - WON, EQUAL, LONGER, PROMPT)
    assert other.estimate == pytest.approx(1 - one.estimate)
    assert other.standard_error == pytest.approx(one.standard_error)
    assert (other.low, other.high) == pytest.approx((1 - one.high, 1 - one.low))


def test_the_unit_of_length_and_the_order_of_rows_do_not_matter() -> None:
    one = length_controlled_win_rate(WON, LONGER, EQUAL, PROMPT)
    order = np.random.default_rng(2).permutation(len(WON))
    moved = length_controlled_win_rate(WON[order], LONGER[order], EQUAL, PROMPT[order])
    assert moved == pytest.approx(one)
    assert length_controlled_win_rate(WON, 4 * LONGER, 4 * EQUAL, PROMPT) == pytest.approx(one)
    assert length_controlled_win_rate(WON, LONGER, EQUAL, PROMPT) == one
    assert length_controlled_win_rate(WON, LONGER, EQUAL, PROMPT, seed=1) != one


def test_missing_verdicts_are_left_out_with_their_lengths() -> None:
    wins, lengths = np.r_[WON, math.nan], np.r_[LONGER, math.nan]
    found = length_controlled_win_rate(wins, lengths, np.r_[EQUAL, 1.0], np.r_[PROMPT, 999])
    assert found == length_controlled_win_rate(WON, LONGER, EQUAL, PROMPT)
    assert all(map(math.isnan, length_controlled_win_rate([math.nan], [1.0], [2.0])))
    assert all(map(math.isnan, length_controlled_win_rate([], [], [])))


def test_all_wins_are_1_with_a_lower_end_no_surer_than_without_length() -> None:
    plain = win_rate(np.ones_like(WON), PROMPT)
    found = length_controlled_win_rate(np.ones_like(WON), LONGER, EQUAL, PROMPT)
    assert (found.estimate, found.high) == (1.0, 1.0)
    assert 0.9 < found.low <= plain.low
    lost = length_controlled_win_rate(np.zeros_like(WON), EQUAL, LONGER, PROMPT)
    assert (lost.estimate, lost.low, lost.high) == pytest.approx((0.0, 0.0, 1 - found.low))


def test_nearly_all_wins_are_no_surer_than_all() -> None:
    lows = []
    for label in (1.0, 0.999, 0.9, 0.5, 0.0):
        wins = np.r_[np.ones(len(WON) - 1), label]
        lows.append(length_controlled_win_rate(wins, LONGER, EQUAL, PROMPT).low)
    assert lows == sorted(lows, reverse=True)
    unanimous = length_controlled_win_rate(np.ones_like(WON), LONGER, EQUAL, PROMPT).low
    alike = length_controlled_win_rate(0 * WON + 0.99, LONGER, EQUAL, PROMPT)
    assert alike.low == pytest.approx(0.99 * unanimous, abs=2e-3)


@pytest.mark.parametrize(
    "wins, longer",
    [
        (WON, np.full(len(WON), 7.1)),  # always longer by the same
        ((LONGER > 0).astype(float), LONGER),  # length alone tells wins from losses
        ((LONGER > 150).astype(float), LONGER),
        (np.r_[0.0, np.ones(len(WON) - 1)], LONGER),  # a single loss
        (WON, np.r_[1e9, np.zeros(len(WON) - 1)]),  # a single difference, and a large one
        (np.clip(WON, 1e-12, 1), LONGER),
    ],
)
def test_degenerate_verdicts_give_numbers(wins: np.ndarray, longer: np.ndarray) -> None:
    found = length_controlled_win_rate(wins, longer, 0 * longer, PROMPT)
    assert np.isfinite(found).all()
    assert 0 <= found.low <= found.estimate <= found.high <= 1


def test_what_length_and_quality_cannot_be_told_apart_by_has_a_wide_interval() -> None:
    found = length_controlled_win_rate(WON, EQUAL + 7.1, EQUAL, PROMPT)
    assert found.estimate == pytest.approx(WON.mean())
    assert found.low < 0.5 < 0.95 < found.high


def test_one_prompt_has_an_estimate_and_no_interval() -> None:
    found = length_controlled_win_rate([1.0, 0.0, 1.0], [3, 4, 9], [3, 3, 3], ["a"] * 3)
    assert 0 < found.estimate < 1
    assert all(map(math.isnan, found[1:]))
    two = length_controlled_win_rate([1.0, 0.0, 1.0], [3, 4, 9], [3, 3, 3], ["a", "b", "b"])
    assert np.isfinite(two).all()


def test_what_is_no_comparison_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        length_controlled_win_rate([1.5], [1], [1])
    with pytest.raises(ValueError, match="NaN or infinite"):
        length_controlled_win_rate([1.0], [math.nan], [1])
    with pytest.raises(ValueError, match="one length"):
        length_controlled_win_rate([1.0, 0.0], [1], [1])
    with pytest.raises(ValueError, match="one cluster"):
        length_controlled_win_rate([1.0, 0.0], [1, 2], [1, 2], ["a"])


def test_one_runaway_does_not_undo_the_control() -> None:
    """A judge of length alone, of an arm that is a little longer: one half at equal lengths."""
    random = np.random.default_rng(5)
    rates = {}
    for runaways in (0, 1, 3):
        found = []
        for _ in range(20):
            longer = random.normal(30, 25, 320)
            longer[:runaways] = 2048
            won = (random.random(320) < sigmoid(longer / 25)).astype(float)
            rate = length_controlled_win_rate(won, longer, 0 * longer, resamples=10)
            found.append(rate.estimate)
        rates[runaways] = float(np.mean(found))
    assert rates[1] == pytest.approx(rates[0], abs=0.02)
    assert rates[3] == pytest.approx(rates[0], abs=0.02)


def test_verbose_systems_rank_by_quality_once_length_is_controlled() -> None:
    """Five systems of rising quality and falling length: plain win rates rank them backwards."""
    random = np.random.default_rng(4)
    quality, shift = [0.35, 0.42, 0.5, 0.58, 0.65], [1.5, 0.75, 0.0, -0.75, -1.5]
    plain, controlled = [], []
    for rate, longer_by in zip(quality, shift, strict=True):
        won, longer, prompt = judged_by_length(random, 805, 1, rate, 1.6, longer_by)
        plain.append(win_rate(won, prompt, resamples=200).estimate)
        found = length_controlled_win_rate(won, longer, 0 * longer, prompt, resamples=200)
        controlled.append(found.estimate)
    assert plain == sorted(plain, reverse=True)
    assert controlled == sorted(controlled)
    assert controlled == pytest.approx(quality, abs=0.08)


@pytest.mark.parametrize(
    "prompts, rate, bias, shift",
    [(160, 0.5, 1.5, 1.0), (60, 0.8, 1.5, -1.0), (160, 0.95, 1.5, 0.5)],
)
def test_coverage_of_the_95_percent_interval(
    prompts: int, rate: float, bias: float, shift: float
) -> None:
    """1,000 experiments; `benchmarks/coverage.py` has more, in more settings."""
    random = np.random.default_rng(7)
    covered = 0
    for experiment in range(1000):
        won, longer, prompt = judged_by_length(random, prompts, 1, rate, bias, shift)
        found = length_controlled_win_rate(
            won, longer, 0 * longer, prompt, resamples=120, seed=experiment
        )
        covered += found.low <= rate <= found.high
    assert 0.93 <= covered / 1000 <= 0.97


@pytest.mark.parametrize("name", LABELS)
def test_soft_labels_and_ties_near_1_are_covered(name: str) -> None:
    """600 experiments of 50 prompts, labels that have nothing to do with length."""
    random = np.random.default_rng(5)
    labels, shares = LABELS[name]
    truth, covered = float(np.dot(labels, shares)), 0
    for experiment in range(600):
        won, longer = labelled(random, 50, 1, labels, shares).ravel(), random.normal(size=50)
        found = length_controlled_win_rate(won, longer, 0 * longer, resamples=120, seed=experiment)
        covered += found.low <= truth <= found.high
    assert covered / 600 >= 0.93
