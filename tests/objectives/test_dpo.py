"""The DPO loss against other implementations, its gradient, and the optimum it leads to."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from betaflow.objectives.dpo import dpo_loss, gradient_weight


def test_it_matches_other_implementations(shared: Path) -> None:
    data = json.loads((shared / "reference" / "dpo_losses.json").read_text())
    names = [
        f"{who}_{side}_logps" for who in ("policy", "reference") for side in ("chosen", "rejected")
    ]
    inputs = data["inputs"]
    tensors = [torch.tensor(inputs[name], dtype=torch.float64) for name in names]
    plain = [
        case
        for case in data["cases"]
        if case["loss"] == "sigmoid" and "losses" in case and not _options(case)
    ]
    assert plain
    for case in plain:
        ours = dpo_loss(*tensors, beta=case["beta"]).losses
        expected = torch.tensor(case["losses"], dtype=torch.float64)
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def _options(case: dict[str, object]) -> bool:
    found = {**case, **(case.get("options") or {})}  # type: ignore[dict-item]
    return bool(found.get("label_smoothing") or found.get("length_normalised"))


def test_worked_values() -> None:
    loss = dpo_loss(
        torch.tensor([-0.5, -10.0, -1.0]),
        torch.tensor([-0.1, -30.0, -21.0]),
        torch.tensor([-0.5, -10.1, -0.1]),
        torch.tensor([-0.1, -20.1, -0.1]),
        beta=0.1,
    )
    expected = torch.tensor([0.693147, 0.313262, 0.126928])
    torch.testing.assert_close(loss.losses, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        loss.chosen_rewards, torch.tensor([0.0, 0.01, -0.09]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        loss.rejected_rewards, torch.tensor([0.0, -0.99, -2.09]), atol=1e-6, rtol=0
    )


def test_the_policy_equal_to_the_reference_has_loss_ln_2() -> None:
    logps = torch.randn(5)
    losses = dpo_loss(logps, logps - 1, logps, logps - 1, beta=0.3).losses
    torch.testing.assert_close(losses, torch.full((5,), math.log(2)))


def test_autograd_is_the_paper_s_gradient() -> None:
    """d loss / d log pi(y_w) = -beta sigma(r_l - r_w), and its opposite for y_l (section 4)."""
    beta = 0.7
    policy = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(2, 6, dtype=torch.float64)
    loss = dpo_loss(policy[0], policy[1], reference[0], reference[1], beta=beta)
    (gradient,) = torch.autograd.grad(loss.losses.sum(), policy)
    weight = gradient_weight(loss.chosen_rewards, loss.rejected_rewards)
    torch.testing.assert_close(gradient, torch.stack([-beta * weight, beta * weight]))


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_minimising_it_leads_to_the_closed_form_optimum(beta: float) -> None:
    """On a world of five answers with Bradley-Terry preferences: pi* = pi_ref exp(r / beta) / Z."""
    torch.manual_seed(0)
    reward = torch.randn(5, dtype=torch.float64)
    reference = torch.log_softmax(torch.randn(5, dtype=torch.float64), 0)
    optimum = torch.log_softmax(reference + reward / beta, 0)
    first, second = (t.reshape(-1) for t in torch.meshgrid(*[torch.arange(5)] * 2, indexing="ij"))
    weight = torch.sigmoid(reward[first] - reward[second])
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15)

    def closure() -> torch.Tensor:
        search.zero_grad()
        policy = torch.log_softmax(logits, 0)
        pairs = policy[first], policy[second], reference[first], reference[second]
        loss = (weight * dpo_loss(*pairs, beta=beta).losses).sum()
        loss.backward()
        return loss

    search.step(closure)  # type: ignore[arg-type]
    torch.testing.assert_close(torch.log_softmax(logits, 0).detach(), optimum, atol=1e-5, rtol=0)
