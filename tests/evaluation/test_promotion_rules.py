"""Each rule of a promotion: what holds, what does not, and what was not measured never does."""

from __future__ import annotations

import math

import numpy as np
import pytest

from betaflow.config import Arm
from betaflow.evaluation import paired_difference, pilot, win_rate
from betaflow.evaluation.bootstrap import UNKNOWN, Estimate
from betaflow.evaluation.promotion import (
    another_model,
    beats_a_coin,
    candidates,
    controls_passed,
    enough_prompts,
    enough_seeds,
    enough_verdicts,
    not_rolled_back,
    not_worse,
    simultaneous,
    wins,
    within_budget,
)

NOTHING = [None, UNKNOWN, UNKNOWN._replace(estimate=0.9), Estimate(0.9, 0.1, 0.8, math.inf)]


def between(low: float, middle: float, high: float) -> Estimate:
    return Estimate(middle, 0.1, low, high)


@pytest.mark.parametrize(
    ("low", "held"), [(0.5001, True), (0.5, False), (0.4999, False), (0.0, False)]
)
def test_a_win_rate_s_lower_end_must_be_above_one_half(low: float, held: bool) -> None:
    rule = wins("win_rate", between(low, 0.7, 0.9), confidence=0.9875)
    assert (rule.held, rule.found, rule.needed) == (held, low, 0.5)
    assert "70.0% [" in rule.reason
    assert "(98.75% interval)" in rule.reason


def test_the_best_of_many_that_are_no_better_is_seldom_promoted() -> None:
    """Ten arms as good as SFT, judged on the same prompts: what the best one's interval says."""
    random = np.random.default_rng(0)
    held = dict.fromkeys((1, 10), 0)
    for experiment in range(1000):
        shared = random.normal(size=(1, 100))  # prompts on which SFT's completion is a bad one
        verdicts = (shared + random.normal(size=(10, 100)) > 0).astype(float)
        best = verdicts[verdicts.mean(axis=1).argmax()]
        for arms in held:
            confidence = simultaneous(0.95, arms)
            rate = win_rate(best, resamples=200, confidence=confidence, seed=experiment)
            held[arms] += wins("win_rate", rate, confidence=confidence).held
    assert held[1] > 60  # had it been there alone: 25
    assert held[10] < 30


@pytest.mark.parametrize("found", NOTHING)
def test_what_was_not_measured_does_not_hold_and_says_what_to_do(found: Estimate | None) -> None:
    for rule in (
        wins("win_rate", found, confidence=0.95),
        not_worse("quiz", "acc", found, 0.1, higher_is_better=True),
        within_budget(found, 10.0),
    ):
        assert not rule.held
        assert rule.found is None
        assert rule.reason.startswith("Not measured: ")
        assert rule.reason.endswith("run `make align`.")


@pytest.mark.parametrize(
    ("ends", "up", "held"),
    [
        ((-0.04, 0.0, 0.04), True, True),
        ((-0.05, 0.0, 0.04), True, False),  # a loss of the margin itself is not ruled out
        ((-0.06, 0.0, 0.9), True, False),  # however much the best case gains
        ((-0.9, 0.0, 0.04), False, True),  # perplexity: a rise is the loss
        ((-0.9, 0.0, 0.06), False, False),
    ],
)
def test_no_loss_of_the_margin(ends: tuple[float, float, float], up: bool, held: bool) -> None:
    rule = not_worse("quiz", "acc", between(*ends), 0.05, higher_is_better=up)
    assert (rule.name, rule.held, rule.needed) == ("quiz/acc", held, -0.05)


def test_documents_decide_how_small_a_loss_can_be_ruled_out() -> None:
    """The same answers on 20 documents rule out little, on 2,000 nearly everything."""
    for count, held in ((20, False), (2000, True)):
        same = paired_difference([1.0, 0.0] * count, [1.0, 0.0] * count, "acc").difference
        assert not_worse("quiz", "acc", same, 0.01, higher_is_better=True).held is held


def test_the_upper_end_of_the_kl_is_what_must_fit() -> None:
    assert within_budget(between(1.0, 2.0, 3.0), 3.0).held
    assert not within_budget(between(1.0, 2.0, 3.1), 3.0).held
    assert within_budget(between(0.0, 0.0, 0.0), 3.0).held


def test_prompts_are_those_that_show_the_win_rate() -> None:
    seen = pilot([1.0, 0.0] * 97)
    aim = {"win_rate": 0.6, "power": 0.8, "confidence": 0.95}
    rule = enough_prompts(194, seen, **aim)  # as tests/evaluation/test_power.py has it
    assert (rule.held, rule.found, rule.needed) == (True, 194, 194)
    rule = enough_prompts(193, seen, **aim)
    assert not rule.held
    assert "Raise sample.prompts" in rule.reason
    assert enough_prompts(0, None, **aim).reason.startswith("Not measured")


def test_all_ties_leave_no_room_for_a_win_rate() -> None:
    rule = enough_prompts(500, pilot([0.5] * 500), win_rate=0.6, power=0.8, confidence=0.95)
    assert not rule.held
    assert "100.0% of its verdicts are ties" in rule.reason


def test_a_reward_model_that_judges_must_beat_a_coin_on_held_out_pairs() -> None:
    assert beats_a_coin(Estimate(0.62, 0.02, 0.58, 0.66)).held
    rule = beats_a_coin(Estimate(0.474, 0.06, 0.35, 0.601))
    assert (rule.held, rule.found) == (False, 0.35)
    assert "right on 47.4% [35.0%, 60.1%]" in rule.reason
    assert not beats_a_coin(Estimate(0.53, 0.02, 0.5, 0.56)).held
    assert beats_a_coin(None).reason.startswith("Not measured")
    assert beats_a_coin(Estimate(1.0, math.nan, math.nan, math.nan)).held is False


def test_a_control_that_was_not_measured_is_not_passed() -> None:
    """With one draw a prompt `self` and `longest` have no pairs."""
    passed = {"null": True, "injection": None, "self": True, "longest": True, "missing": True}
    needed = ["null", "self", "longest"]
    assert controls_passed(passed, needed).held
    one_draw = controls_passed(passed | {"self": None, "longest": None}, needed)
    assert (one_draw.held, one_draw.reason) == (
        False,
        "Not measured: the judge's controls self, longest; they take draws at T = 1 by two of "
        "sample.seeds, and enough prompts to fail on.",
    )
    no_order = controls_passed(passed, [*needed, "order"])
    assert (no_order.held, no_order.reason) == (False, "Not measured: the judge's controls order.")
    failed = controls_passed(passed | {"null": False, "longest": False, "self": None}, needed)
    assert failed.reason.startswith("The judge failed null, longest:")
    assert not failed.held
    assert not controls_passed(dict.fromkeys(passed), needed).held
    assert not controls_passed(None, needed).held


@pytest.mark.parametrize(
    ("missing", "held"), [(0.0, True), (0.1, True), (0.11, False), (float("nan"), False)]
)
def test_few_verdicts_may_be_missing(missing: float, held: bool) -> None:
    rule = enough_verdicts(missing, 0.1, [Estimate(0.6, 0.02, 0.56, 0.64)] * 2)
    assert (rule.name, rule.held, rule.needed) == ("verdicts", held, 0.1)


def test_the_missing_verdicts_could_not_have_turned_either_win() -> None:
    sure, unsure = Estimate(0.56, 0.02, 0.52, 0.6), Estimate(0.53, 0.02, 0.49, 0.57)
    assert enough_verdicts(0.1, 0.1, [sure, sure]).held
    for lost in ([sure, unsure], [unsure, sure]):
        rule = enough_verdicts(0.1, 0.1, lost)
        assert not rule.held
        assert "53.0% [49.0%, 57.0%]" in rule.reason
    for unknown in (None, Estimate(0.6, math.nan, math.nan, 0.7)):
        assert not enough_verdicts(0.1, 0.1, [sure, unknown]).held
    assert not enough_verdicts(0.1, 0.1).held


def test_seeds_and_identity() -> None:
    assert enough_seeds(3, 3).held
    assert not enough_seeds(2, 3).held
    assert another_model("a", "b").held
    assert not another_model("a", "a").held
    for unknown in (("a", None), (None, "a"), (None, None)):
        assert "Not measured" in another_model(*unknown).reason
        assert not another_model(*unknown).held
    assert not_rolled_back(None).held
    assert not not_rolled_back(2).held


def test_a_metric_of_unknown_direction_rules_nothing_out() -> None:
    rule = not_worse("quiz", "score", between(-0.8, -0.8, -0.8), 0.1, higher_is_better=None)
    assert not rule.held
    assert "whether a higher score of quiz is better" in rule.reason


def test_an_arm_of_another_method_was_chosen_among_all_models() -> None:
    sft, best_of_n = Arm(method="sft"), Arm(method="best_of_n", n=4, scorer="gold")
    dpo, ppo = Arm(method="dpo", seed=0), Arm(method="ppo", seed=0)
    ipo = [Arm(method="ipo", seed=seed) for seed in range(5)]
    sweep = [sft, dpo, *ipo, ppo, best_of_n]
    assert candidates(sweep, ["dpo", "ppo"], ppo) == [dpo, ppo]
    # Named, as the best of five say: by its name alone it would be one of three.
    assert candidates(sweep, ["dpo", "ppo"], ipo[3]) == [dpo, *ipo, ppo]
    assert candidates(sweep, ["dpo"], sft) == [sft, dpo, *ipo, ppo]
    assert candidates(sweep, ["sft", "dpo"], dpo) == [sft, dpo]
