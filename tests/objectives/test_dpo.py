"""The losses against other implementations and worked values; what is refused; extremes.

That the DPO loss is the right one is in `test_derivation.py`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from betaflow.objectives.dpo import (
    LOSSES,
    DPOLoss,
    LossName,
    check_options,
    dpo_loss,
    gradient_weight,
)

# Every loss with every option it uses, each at a value that matters.
VARIANTS: list[dict[str, Any]] = [
    {"loss": "sigmoid"},
    {"loss": "sigmoid", "label_smoothing": 0.1},
    {"loss": "sigmoid", "length_normalised": True},
    {"loss": "sigmoid", "label_smoothing": 0.1, "length_normalised": True},
    {"loss": "robust"},
    {"loss": "robust", "label_smoothing": 0.1},
    {"loss": "ipo"},
    {"loss": "ipo", "length_normalised": True},
    {"loss": "hinge"},
    {"loss": "sppo_hard"},
    {"loss": "apo_zero"},
    {"loss": "apo_down"},
    {"loss": "simpo"},
    {"loss": "simpo", "margin": 0.5},
    {"loss": "simpo", "margin": 0.5, "length_normalised": True},
]


def named(variant: dict[str, Any]) -> str:
    return "-".join(str(v) if k == "loss" else f"{k}={v}" for k, v in variant.items())


def float64(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logps_and_lengths(seed: int = 0) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Five pairs: the four log-probabilities, in the order of the arguments, and the lengths."""
    torch.manual_seed(seed)
    lengths = {f"{side}_lengths": torch.randint(1, 9, (5,)) for side in ("chosen", "rejected")}
    return [-5 * torch.rand(5, dtype=torch.float64) for _ in range(4)], lengths


def test_it_matches_other_implementations(shared: Path) -> None:
    """Every case of the reference file, to 1e-6 in float64."""
    data = json.loads((shared / "reference" / "dpo_losses.json").read_text())
    inputs = {name: float64(values) for name, values in data["inputs"].items()}
    losses = set()
    for case in data["cases"]:
        what = case["loss"], case.pop("beta"), case.pop("source")
        name = case.pop("loss")
        expected = {field: float64(case.pop(field)) for field in DPOLoss._fields if field in case}
        assert expected, what
        # What is left are the options: one that `dpo_loss` does not know fails here.
        name = "sigmoid" if name == "rewards" else name
        ours = dpo_loss(**inputs, beta=what[1], loss=name, **case)
        for field, values in expected.items():
            torch.testing.assert_close(
                getattr(ours, field), values, atol=1e-6, rtol=0, msg=lambda m, w=what: f"{w}: {m}"
            )
        losses.add(what[0])
    # SimPO has no case there: `test_simpo_by_hand`.
    assert losses == {*LOSSES, "rewards"} - {"simpo"}


# From public tests (../shared/reference/README.md).
REPLAY = (
    float64([-0.5, -10.0, -1.0]),
    float64([-0.1, -30.0, -21.0]),
    float64([-0.5, -10.1, -0.1]),
    float64([-0.1, -20.1, -0.1]),
)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss": "sigmoid"}, [0.693147, 0.313262, 0.126928]),
        ({"loss": "hinge"}, [1.0, 0.0, 0.0]),
        ({"loss": "sigmoid", "label_smoothing": 0.1}, [0.693147, 0.413262, 0.326928]),
        ({"loss": "ipo"}, [25.0, 25.0, 225.0]),
    ],
)
def test_replayed_values(options: dict[str, Any], expected: list[float]) -> None:
    found = dpo_loss(*REPLAY, beta=0.1, **options)
    wanted = float64(expected), float64([0.0, 0.01, -0.09]), float64([0.0, -0.99, -2.09])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("options", "expected", "rewards"),
    [
        # beta = 1/2; log-ratios 0.6 and -0.8, so h = 1.4; per token (2 and 4 tokens) 0.3 and -0.2.
        ({"loss": "sigmoid"}, -math.log(sigma(0.7)), (0.3, -0.4)),
        (
            {"loss": "sigmoid", "label_smoothing": 0.2},
            -0.8 * math.log(sigma(0.7)) - 0.2 * math.log(sigma(-0.7)),
            (0.3, -0.4),
        ),
        ({"loss": "sigmoid", "length_normalised": True}, -math.log(sigma(0.25)), (0.15, -0.1)),
        (
            {"loss": "robust", "label_smoothing": 0.2},
            (-0.8 * math.log(sigma(0.7)) + 0.2 * math.log(sigma(-0.7))) / 0.6,
            (0.3, -0.4),
        ),
        ({"loss": "ipo"}, 0.16, (0.3, -0.4)),
        ({"loss": "ipo", "length_normalised": True}, 0.25, (0.15, -0.1)),
        ({"loss": "hinge"}, 0.3, (0.3, -0.4)),
        ({"loss": "sppo_hard"}, 0.16 + 0.04, (0.3, -0.4)),
        ({"loss": "apo_zero"}, (1 - sigma(0.3)) + sigma(-0.4), (0.3, -0.4)),
        ({"loss": "apo_down"}, sigma(0.3) + (1 - sigma(0.7)), (0.3, -0.4)),
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else "",
)
def test_each_loss_by_hand(
    options: dict[str, Any], expected: float, rewards: tuple[float, float]
) -> None:
    lengths = {"chosen_lengths": torch.tensor([2]), "rejected_lengths": torch.tensor([4])}
    logps = [float64([value]) for value in (-1.4, -4.8, -2.0, -4.0)]
    found = dpo_loss(*logps, beta=0.5, **lengths, **options)
    torch.testing.assert_close(found.losses, float64([expected]), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.chosen_rewards, float64([rewards[0]]), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.rejected_rewards, float64([rewards[1]]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("length_normalised", [False, True])
def test_simpo_by_hand(length_normalised: bool) -> None:
    """log pi / |y| is -6/4 = -1.5 and -10/5 = -2; beta h - gamma = 2 * 0.5 - 0.4 = 0.6."""
    chosen, rejected = float64([-6.0]), float64([-10.0])
    lengths = {"chosen_lengths": torch.tensor([4]), "rejected_lengths": torch.tensor([5])}
    for reference in ((None, None), (float64([-123.0]), float64([-4.0]))):  # ignored
        found = dpo_loss(
            chosen, rejected, *reference, beta=2.0, loss="simpo", margin=0.4,
            length_normalised=length_normalised, **lengths,
        )  # fmt: skip
        expected = math.log1p(math.exp(-0.6))  # 0.437488
        torch.testing.assert_close(found.losses, float64([expected]), atol=1e-12, rtol=0)
        assert found.chosen_rewards.tolist() == [-3.0]
        assert found.rejected_rewards.tolist() == [-4.0]


def test_cdpo_is_least_where_the_preference_probability_is_one_minus_epsilon() -> None:
    """Its gradient is zero at sigma(beta h) = 1 - epsilon, and only there (Mitchell's note)."""
    beta, epsilon = 0.5, 0.1
    margin = math.log((1 - epsilon) / epsilon) / beta
    policy = float64([margin - 1, margin, margin + 1]).requires_grad_()
    zero = torch.zeros(3, dtype=torch.float64)
    loss = dpo_loss(policy, zero, zero, zero, beta=beta, label_smoothing=epsilon).losses.sum()
    (gradient,) = torch.autograd.grad(loss, policy)
    assert gradient[0] < -0.01
    assert abs(gradient[1]) < 1e-15
    assert gradient[2] > 0.01


def test_the_robust_loss_is_unbiased_when_labels_are_flipped() -> None:
    """(1 - epsilon) robust(w, l) + epsilon robust(l, w) is the DPO loss of the true label."""
    (chosen, rejected, reference_chosen, reference_rejected), _ = logps_and_lengths()
    noisy = {"beta": 0.5, "loss": "robust", "label_smoothing": 0.2}
    right = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, **noisy).losses
    wrong = dpo_loss(rejected, chosen, reference_rejected, reference_chosen, **noisy).losses
    clean = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=0.5).losses
    torch.testing.assert_close(0.8 * right + 0.2 * wrong, clean, atol=1e-12, rtol=0)
    assert (right - clean).abs().min() > 0.01


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_autograd_is_the_numerical_gradient(variant: dict[str, Any]) -> None:
    logps, lengths = logps_and_lengths()
    if variant["loss"] == "hinge":  # away from its kink, on both sides of it
        h = logps[0] - logps[2] - logps[1] + logps[3]
        assert (1 - 0.7 * h).abs().min() > 0.01
        assert 0 < int((0.7 * h > 1).sum()) < len(h)
    if variant["loss"] == "simpo":
        logps[2:] = [None, None]

    def losses(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return dpo_loss(chosen, rejected, *logps[2:], beta=0.7, **lengths, **variant).losses

    policy = [tensor.requires_grad_() for tensor in logps[:2]]
    assert torch.autograd.gradcheck(losses, policy)


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_rewards_are_detached_and_of_one_value_a_pair(variant: dict[str, Any]) -> None:
    logps, lengths = logps_and_lengths()
    logps[0].requires_grad_()
    found = dpo_loss(*logps, beta=0.7, **lengths, **variant)
    assert [value.shape for value in found] == [(5,)] * 3
    assert [value.requires_grad for value in found] == [True, False, False]


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_extreme_margins_stay_finite(variant: dict[str, Any], extreme: float) -> None:
    policy = torch.tensor([[extreme, extreme, 0.0], [-extreme, 0.0, -extreme]], requires_grad=True)
    one = torch.ones(3)
    found = dpo_loss(
        *policy, 0 * one, 0 * one, beta=1.0, chosen_lengths=one, rejected_lengths=one, **variant
    )
    (gradient,) = torch.autograd.grad(found.losses.sum(), policy)
    assert found.losses.isfinite().all()
    assert gradient.isfinite().all()
    if variant == {"loss": "sigmoid"}:  # -log sigma(x) is -x far below zero, and 0 far above
        wrong = torch.tensor([2e4, 1e4, 1e4])
        assert found.losses.tolist() == (wrong if extreme < 0 else 0 * wrong).tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss": "sigmoid"}, math.log(2)),
        ({"loss": "sigmoid", "label_smoothing": 0.1}, math.log(2)),
        ({"loss": "sigmoid", "length_normalised": True}, math.log(2)),
        ({"loss": "robust", "label_smoothing": 0.1}, math.log(2)),
        ({"loss": "ipo"}, 1 / (4 * 0.3**2)),
        ({"loss": "ipo", "length_normalised": True}, 1 / (4 * 0.3**2)),
        ({"loss": "hinge"}, 1.0),
        ({"loss": "sppo_hard"}, 1 / (2 * 0.3**2)),
        ({"loss": "apo_zero"}, 1.0),
        ({"loss": "apo_down"}, 1.0),
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else "",
)
def test_the_policy_equal_to_the_reference(options: dict[str, Any], expected: float) -> None:
    """What the first step's loss is: ln 2 for `sigmoid`."""
    (chosen, rejected, *_), lengths = logps_and_lengths()
    found = dpo_loss(chosen, rejected, chosen, rejected, beta=0.3, **lengths, **options)
    torch.testing.assert_close(found.losses, float64([expected] * 5), atol=1e-12, rtol=0)
    assert not found.chosen_rewards.any()
    assert not found.rejected_rewards.any()


def test_the_gradient_s_weight() -> None:
    """1/2 at a tie, near 1 where the implicit reward is wrong, near 0 where it is right."""
    found = gradient_weight(float64([0.0, -5.0, 5.0]), float64([0.0, 5.0, -5.0]))
    torch.testing.assert_close(found, float64([0.5, sigma(10), sigma(-10)]))


# --- what is refused -----------------------------------------------------------------------------

USES = {
    "label_smoothing": (0.1, ["sigmoid", "robust"]),
    "length_normalised": (True, ["sigmoid", "ipo", "simpo"]),
    "margin": (0.5, ["simpo"]),
}
CHOICES = [(loss, option) for loss in LOSSES for option in USES]


def test_the_names_of_the_losses() -> None:
    assert sorted(LOSSES) == sorted(
        ["sigmoid", "robust", "ipo", "hinge", "sppo_hard", "apo_zero", "apo_down", "simpo"]
    )


@pytest.mark.parametrize(("loss", "option"), CHOICES)
def test_an_option_is_used_or_refused(loss: LossName, option: str) -> None:
    value, users = USES[option]
    logps, lengths = logps_and_lengths()

    def losses(**options: Any) -> torch.Tensor:
        return dpo_loss(*logps, beta=0.5, loss=loss, **lengths, **options).losses

    if loss not in users:
        message = (
            f"loss '{loss}' does not use {option} (found {value}); "
            f"losses that use it: {', '.join(users)}"
        )
        for refused in (lambda: losses(**{option: value}),
                        lambda: check_options(loss, beta=0.5, **{option: value})):  # fmt: skip
            with pytest.raises(ValueError) as error:
                refused()
            assert str(error.value) == message
    else:
        check_options(loss, beta=0.5, **{option: value})
        same = torch.equal(losses(**{option: value}), losses())
        assert same == ((loss, option) == ("simpo", "length_normalised"))  # which always is


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("dpo", {}, f"unknown loss 'dpo'; known losses: {', '.join(LOSSES)}"),
        ("sigmoid", {"beta": 0.0}, "beta must be positive and finite, not 0.0"),
        ("simpo", {"beta": -0.1}, "beta must be positive and finite, not -0.1"),
        ("ipo", {"beta": math.nan}, "beta must be positive and finite, not nan"),
        ("ipo", {"beta": math.inf}, "beta must be positive and finite, not inf"),
        (
            "sigmoid",
            {"label_smoothing": 0.5},
            "label_smoothing must be at least 0 and below 0.5, not 0.5",
        ),
        (
            "robust",
            {"label_smoothing": -0.1},
            "label_smoothing must be at least 0 and below 0.5, not -0.1",
        ),
        ("simpo", {"margin": -0.5}, "margin must be at least 0 and finite, not -0.5"),
        ("simpo", {"margin": math.inf}, "margin must be at least 0 and finite, not inf"),
    ],
)
def test_values_out_of_range_are_refused(loss: Any, options: dict[str, Any], message: str) -> None:
    logps, lengths = logps_and_lengths()
    options = {"beta": 0.5, **options}
    with pytest.raises(ValueError) as error:
        check_options(loss, **options)
    assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        dpo_loss(*logps, loss=loss, **lengths, **options)
    assert str(error.value) == message


@pytest.mark.parametrize("missing", ["chosen_lengths", "rejected_lengths"])
@pytest.mark.parametrize(
    ("options", "who"),
    [
        ({"loss": "sigmoid", "length_normalised": True}, "length_normalised"),
        ({"loss": "ipo", "length_normalised": True}, "length_normalised"),
        ({"loss": "simpo"}, "loss 'simpo'"),
    ],
)
def test_missing_lengths_are_refused(options: dict[str, Any], who: str, missing: str) -> None:
    logps, lengths = logps_and_lengths()
    del lengths[missing]
    with pytest.raises(ValueError) as error:
        dpo_loss(*logps, beta=0.5, **lengths, **options)
    assert str(error.value) == f"{who} needs chosen_lengths and rejected_lengths"


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "simpo"])
def test_a_missing_reference_is_refused(loss: LossName) -> None:
    logps, _ = logps_and_lengths()
    for references in ((None, logps[3]), (logps[2], None)):
        with pytest.raises(ValueError) as error:
            dpo_loss(logps[0], logps[1], *references, beta=0.5, loss=loss)
        assert str(error.value) == f"loss '{loss}' needs the reference's log-probabilities"


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
def test_lengths_that_are_not_needed_change_nothing(loss: LossName) -> None:
    logps, lengths = logps_and_lengths()
    found = dpo_loss(*logps, beta=0.5, loss=loss, **lengths)
    for ours, plain in zip(found, dpo_loss(*logps, beta=0.5, loss=loss), strict=True):
        assert torch.equal(ours, plain)
