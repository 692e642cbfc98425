"""Over-optimisation: fits worked by hand, the intervals' coverage, and the winner's curse."""

from __future__ import annotations

import math

import numpy as np
import pytest

from betaflow.evaluation.overoptimisation import (
    Form,
    fit,
    fit_intervals,
    gold_peak,
    held_out_error,
    reward_at,
)

FORMS: list[Form] = ["rl", "bon"]
D = np.array([0.0, 0.3, 0.8, 1.5, 2.5, 4.0, 6.0, 9.0])


# The fit


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha, beta", [(1.3, 0.45), (-0.2, 0.7), (0.5, -0.1)])
def test_known_coefficients_come_back(form: Form, alpha: float, beta: float) -> None:
    bend = np.log(np.where(D > 0, D, 1)) if form == "rl" else D
    reward = D * (alpha - beta * bend)
    np.testing.assert_allclose(reward_at(D, alpha, beta, form), reward, atol=1e-12)
    found = fit(D, reward, form)
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta), abs=1e-10)
    assert found.rmse == pytest.approx(0, abs=1e-10)
    assert (found.points, found.reason) == (7, "")


@pytest.mark.parametrize("form", FORMS)
def test_peak_is_the_highest_point_of_the_curve(form: Form) -> None:
    found = fit(D, reward_at(D, 1.3, 0.45, form), form)
    grid = np.linspace(0, 20, 200_001)
    height = reward_at(grid, 1.3, 0.45, form)
    assert found.peak_d == pytest.approx(grid[height.argmax()], abs=1e-4)
    assert found.peak_reward == pytest.approx(height.max(), abs=1e-8)


def test_rmse_by_hand() -> None:
    # (3, -3, 1) is orthogonal to d = (1, 2, 3) and d^2 = (1, 4, 9): it is all residual.
    reward = np.array([3.0, 4.0, 3.0]) + 0.1 * np.array([3.0, -3.0, 1.0])
    found = fit([1, 2, 3], reward, "bon")
    assert found[1:5] == pytest.approx((4.0, 1.0, 2.0, 4.0))
    assert found.rmse == pytest.approx(0.1 * math.sqrt(19 / 3))


def test_a_curve_that_never_turns_has_no_peak() -> None:
    for form in FORMS:
        found = fit(D, reward_at(D, 1.0, -0.1, form), form)
        assert (found.peak_d, found.peak_reward) == (math.inf, math.inf)
    falls = fit(D, reward_at(D, -1.0, 0.1, "bon"), "bon")
    assert (falls.peak_d, falls.peak_reward) == (0, 0)
    assert fit(D, reward_at(D, 1.0, 1e-4, "rl"), "rl").peak_d == math.inf  # exp(9999)


@pytest.mark.parametrize("d", [[], [0.0, 0.0], [0, 1, 2], [1, 1, 2, 2], [1, 1 + 1e-15, 1 + 2e-15]])
def test_a_short_run_gives_nan_and_a_reason(d: list[float]) -> None:
    reward = np.arange(len(d)) * 1.0
    found = fit(d, reward, "rl")
    assert found.reason and all(map(math.isnan, found[1:6]))
    held = held_out_error(d, reward, np.arange(len(d)) % 2, "rl")
    assert held.unseen_curve.reason and math.isnan(held.unseen_curve.rmse)
    assert held.extrapolation.reason and math.isnan(held.extrapolation.rmse)
    spread = fit_intervals(d, reward, "rl", curves=np.arange(len(d)))
    assert spread.reason and all(map(math.isnan, [*spread.alpha, *spread.beta, *spread.peak_d]))


@pytest.mark.parametrize(
    "d, reward",
    [
        ([-1, 1, 2, 3], [0, 0, 0, 0]),
        ([math.nan, 1, 2, 3], [0, 0, 0, 0]),
        ([math.inf, 1, 2, 3], [0, 0, 0, 0]),
        ([1, 2, 3, 4], [math.nan, 0, 0, 0]),
        ([1, 2, 3, 4], [0, 0, 0]),
        ([1, 2, 3, 4], [[0, 0]] * 4),
    ],
)
def test_what_is_no_curve_is_refused(d: list, reward: list) -> None:
    with pytest.raises(ValueError, match=r"finite|one reward"):
        fit(d, reward, "rl")


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="form"):
        fit(D, D, "cubic")  # type: ignore[arg-type]


# Held-out error


def test_error_on_an_unseen_curve_by_hand() -> None:
    # d(4 - d) and d(2 - d): each is predicted from the other, 2d off.
    d, reward = [1, 2, 3, 1, 2, 3], [3, 4, 3, 1, 0, -3]
    found = held_out_error(d, reward, list("aaabbb"), "bon").unseen_curve
    assert found.rmse == pytest.approx(math.sqrt((2**2 + 4**2 + 6**2) / 3))
    assert found.r2 == pytest.approx(1 - (56 / 3) / (50 / 9))  # the six rewards' variance is 50/9
    assert found.points == 6


def test_error_beyond_the_median_by_hand() -> None:
    # d(4 - d) up to d = 3 predicts 0, -5, -12 after.
    d, reward = [0, 1, 2, 3, 4, 5, 6], [9, 3, 4, 3, 1, -5, -10]
    found = held_out_error(d, reward, [0] * 7, "bon")
    assert found.extrapolation.rmse == pytest.approx(math.sqrt((1 + 0 + 4) / 3))
    assert found.extrapolation.r2 == pytest.approx(1 - (5 / 3) / (182 / 9))
    assert found.extrapolation.points == 3
    assert "few" in found.unseen_curve.reason  # one curve leaves no other to learn from
    wide = held_out_error(d, reward, [0] * 7, "bon", quantile=0.8)
    assert wide.extrapolation.points == 1


def test_the_form_that_made_the_data_predicts_better() -> None:
    random = np.random.default_rng(0)
    d = np.tile(np.geomspace(0.2, 9, 10), 4)
    reward = reward_at(d, 1.0, 0.5, "rl") + 0.02 * random.normal(size=40)
    right, wrong = (held_out_error(d, reward, np.repeat(range(4), 10), form) for form in FORMS)
    assert right.unseen_curve.rmse < wrong.unseen_curve.rmse / 2
    assert right.extrapolation.rmse < wrong.extrapolation.rmse / 2
    assert right.unseen_curve.r2 > 0.98


def test_labels_and_quantiles_are_checked() -> None:
    with pytest.raises(ValueError, match="curve a d"):
        held_out_error(D, D, [0], "rl")
    with pytest.raises(ValueError, match="quantile"):
        held_out_error(D, D, D, "rl", quantile=1.0)


# Intervals


def test_over_prompts_the_error_is_that_of_the_prompts_own_coefficients() -> None:
    # The fit is linear in the rewards: alpha of the mean is the mean of the prompts' alphas.
    random = np.random.default_rng(1)
    gold = reward_at(D, 1.0, 0.3, "rl")[:, None] + random.normal(size=(8, 50))
    gold[2, 7] = math.nan
    each = np.array([fit(D, gold[:, p], "rl")[1:3] for p in range(50) if p != 7])
    found = fit_intervals(D, gold, "rl", resamples=20_000)
    for k, coefficient in enumerate((found.alpha, found.beta)):
        assert coefficient.estimate == pytest.approx(each[:, k].mean())
        assert coefficient.standard_error == pytest.approx(each[:, k].std(ddof=1) / 7, rel=0.02)
        assert coefficient.low < coefficient.estimate < coefficient.high


def test_copies_of_a_curve_are_no_new_runs() -> None:
    random = np.random.default_rng(2)
    d = np.tile(D, 4)
    reward = reward_at(d, 1.0, 0.3, "rl") + random.normal(size=32)
    labels = np.repeat(range(4), 8)
    once = fit_intervals(d, reward, "rl", curves=labels)
    points_twice = (np.tile(each, 2) for each in (d, reward, labels))
    d2, reward2, labels2 = points_twice
    assert fit_intervals(d2, reward2, "rl", curves=labels2).beta == pytest.approx(once.beta)
    assert fit_intervals(d, reward, "rl", curves=labels) == once
    assert fit_intervals(d, reward, "rl", curves=labels, seed=1) != once


def test_drawing_curves_and_prompts_adds_their_variances() -> None:
    random = np.random.default_rng(3)
    d, labels = np.tile(D, 8), np.repeat(range(8), 8)
    shift, own = random.normal(size=(8, 1)), random.normal(size=(1, 30))
    gold = reward_at(d, 1.0, 0.3, "rl")[:, None] + d[:, None] * (0.2 * np.repeat(shift, 8, 0) + own)
    both = fit_intervals(d, gold, "rl", curves=labels).alpha
    runs = fit_intervals(d, gold.mean(axis=1), "rl", curves=labels).alpha
    prompts = fit_intervals(d, gold, "rl").alpha
    apart = math.hypot(runs.standard_error, prompts.standard_error)
    assert both.standard_error == pytest.approx(apart, rel=0.05)
    assert both.estimate == pytest.approx(runs.estimate) == pytest.approx(prompts.estimate)


def test_resamples_of_one_point_over_and_over_are_left_out() -> None:
    # 5 runs of one point each: 1 resample in 625 draws one of them 5 times, which fixes no curve.
    noise = np.array([0.1, -0.1, 0.1, -0.1, 0.1])
    reward = reward_at([1, 2, 3, 4, 5], 1.0, 0.3, "bon") + noise
    found = fit_intervals([1, 2, 3, 4, 5], reward, "bon", curves=range(5))
    assert 0.01 < found.alpha.standard_error < 1


def test_one_curve_has_no_interval_over_curves() -> None:
    found = fit_intervals(D, reward_at(D, 1.0, 0.5, "bon"), "bon", curves=["a"] * 8)
    assert found.alpha.estimate == pytest.approx(1) and found.peak_d.estimate == pytest.approx(1)
    assert all(map(math.isnan, [*found.alpha[1:], *found.beta[1:], *found.peak_d[1:]]))
    assert "single" in found.reason
    with pytest.raises(ValueError, match="nothing to draw"):
        fit_intervals(D, D, "rl")
    assert "measured" in fit_intervals(D, np.full((8, 3), math.nan), "rl").reason


@pytest.mark.parametrize(
    "beta, low, high", [(0.5, True, True), (0.0, True, False), (-0.5, False, False)]
)
def test_the_peak_is_open_ended_where_the_curve_may_not_turn(
    beta: float, low: bool, high: bool
) -> None:
    random = np.random.default_rng(4)
    gold = reward_at(D, 1.0, beta, "rl")[:, None] + 0.5 * random.normal(size=(8, 40))
    found = fit_intervals(D, gold, "rl").peak_d
    assert (math.isfinite(found.low), math.isfinite(found.high)) == (low, high)


@pytest.mark.parametrize(
    "runs, prompts, form",
    [(3, 0, "rl"), (5, 0, "bon"), (0, 20, "rl"), (0, 40, "bon"), (4, 20, "rl")],
)
def test_coverage_of_the_95_percent_intervals(runs: int, prompts: int, form: Form) -> None:
    """1,000 experiments; runs and prompts have alpha and beta of their own around 1 and 0.4."""
    random = np.random.default_rng(5)
    truth = np.array([1.0, 0.4])
    peak = math.exp(1 / 0.4 - 1) if form == "rl" else 1 / 0.8
    columns = np.stack([reward_at(D, 1, 0, form), reward_at(D, 0, 1, form)], axis=1)
    covered = np.zeros(3)
    for experiment in range(1000):
        of_run = (runs > 0) * 0.1 * random.normal(size=(max(runs, 1), 1, 2))
        of_prompt = (prompts > 0) * 0.3 * random.normal(size=(1, max(prompts, 1), 2))
        rewards = (truth + of_run + of_prompt) @ columns.T  # (runs, prompts, 8)
        rewards += 0.1 * random.normal(size=rewards.shape)
        table = rewards.transpose(0, 2, 1).reshape(-1, max(prompts, 1))
        found = fit_intervals(
            np.tile(D, max(runs, 1)),
            table if prompts else table[:, 0],
            form,
            curves=np.repeat(range(runs), 8) if runs else None,
            resamples=300,
            seed=experiment,
        )
        ends = np.array([found.alpha, found.beta, found.peak_d])[:, 2:]
        covered += (ends[:, 0] <= [*truth, peak]) & ([*truth, peak] <= ends[:, 1])
    assert (covered >= 930).all() and (covered <= 970).all(), covered


# The measured peak


def test_a_peak_without_noise() -> None:
    level = np.arange(10.0)  # the prompts differ in level, not in shape
    shape = np.array([0.0, 1.0, 3.0, 2.5])
    found = gold_peak([0, 10, 20, 30], [0, 0.5, 1.1, 2.0], shape[:, None] + level)
    assert found.step == (20, 0, 20, 20)
    assert found.d == pytest.approx((1.1, 0, 1.1, 1.1))
    assert (found.highest, found.reward.estimate) == pytest.approx((7.5, 7.5))
    assert found.decline == pytest.approx((0.5, 0, 0.5, 0.5))
    assert found.reward.low < 7.5 - 1 and found.reward.high > 7.5 + 1  # levels differ by 2.9
    assert (found.prompts, found.reason) == (10, "")


def test_two_points_that_may_be_the_peak_are_both_in_its_interval() -> None:
    sway = np.tile([2.0, -1.9], 10)  # one prompt in two prefers step 10 to step 20
    gold = np.stack([np.zeros(20), 9 + sway, 9 - sway, np.zeros(20)])
    found = gold_peak([0, 10, 20, 30], [0, 2.0, 1.0, 3.0], gold)
    assert (found.step.estimate, found.step.low, found.step.high) == (10, 10, 20)
    assert (found.d.estimate, found.d.low, found.d.high) == (2, 1, 2)


def test_rows_in_any_order_and_prompts_with_a_gap() -> None:
    random = np.random.default_rng(0)
    steps, d = np.arange(6) * 10, np.arange(6) / 3
    gold = random.normal(size=(6, 20))
    order = random.permutation(6)
    plain = gold_peak(steps, d, gold)
    assert gold_peak(steps[order], d[order], gold[order]) == plain
    gap = np.full((6, 1), 50.0)
    gap[3] = math.nan
    assert gold_peak(steps, d, np.hstack([gold, gap])) == plain
    assert gold_peak(steps, d, gold, seed=1) != plain


def test_too_little_to_find_a_peak_gives_nan_and_a_reason() -> None:
    for gold in (np.zeros((1, 20)), np.zeros((5, 7)), np.zeros((0, 20)), np.full((5, 20), np.nan)):
        points = len(gold)
        found = gold_peak(range(points), np.ones(points), gold)
        assert "too few" in found.reason
        assert all(map(math.isnan, [*found.step, found.highest, *found.reward, *found.decline]))


def test_what_is_no_training_curve_is_refused() -> None:
    gold = np.zeros((3, 20))
    for steps, d in (([0, 1, 1], [0, 1, 2]), ([0, 1, 2], [0, -1, 2]), ([0, 1], [0, 1])):
        with pytest.raises(ValueError):
            gold_peak(steps, d, gold)
    with pytest.raises(ValueError, match="infinite"):
        gold_peak([0, 1, 2], [0, 1, 2], gold + math.inf)


def experiments(mean: np.ndarray, prompts: int, count: int) -> dict[str, np.ndarray]:
    """`gold_peak` on noisy measurements of `mean`; the true peak is at its first maximum."""
    random = np.random.default_rng(6)
    steps, rows = np.arange(len(mean)), []
    true = int(mean.argmax())
    for experiment in range(count):
        gold = mean[:, None] + random.normal(size=(len(mean), prompts))
        found = gold_peak(steps, steps, gold, resamples=200, seed=experiment)
        naive = gold[int(found.step.estimate)] - gold[-1]
        rows.append(
            (
                found.highest - mean.max(),
                found.reward.estimate - mean.max(),
                naive.mean() / (naive.std(ddof=1) / math.sqrt(prompts) + 1e-9) > 1.96,
                found.decline.low > 0,
                found.decline.low <= mean.max() - mean[-1] <= found.decline.high,
                found.step.low <= true <= found.step.high,
            )
        )
    names = ("naive_bias", "bias", "naive_false", "false", "covered", "located")
    return dict(zip(names, np.array(rows, dtype=float).T, strict=True))


def test_the_highest_mean_is_biased_and_the_cross_fitted_reward_is_not() -> None:
    """Ten equal points of 40 prompts: the highest is too high by 1.54 standard errors."""
    found = experiments(np.zeros(10), 40, 500)
    error = 1 / math.sqrt(40)
    assert found["naive_bias"].mean() == pytest.approx(1.54 * error, rel=0.1)
    assert abs(found["bias"].mean()) < 3 * found["bias"].std() / math.sqrt(500) < 0.2 * error
    assert found["naive_false"].mean() > 0.1  # a fall "shown" where there is none
    assert found["false"].mean() < 0.025 + 0.02


def test_a_real_peak_is_found_and_its_decline_covered() -> None:
    mean = np.array([0.0, 0.5, 0.9, 1.6, 0.9, 0.6, 0.3])
    found = experiments(mean, 60, 500)
    assert 0.93 <= found["covered"].mean() <= 0.97
    assert found["located"].mean() >= 0.95
    assert found["false"].mean() > 0.99  # here the fall is true
    assert abs(found["bias"].mean()) < 0.02
