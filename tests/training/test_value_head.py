"""The auxiliary head: its loss against a computation by hand, its gradient, and what it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from betaflow.data.tokenise import Encoded
from betaflow.errors import UserError
from betaflow.policy.loading import load_policy
from betaflow.policy.scorer import Scorer
from betaflow.training.value_head import HOLD, new_head, value_loss

ROWS = [
    [Encoded([5, 6, 7], [8, 9, 2]), Encoded([5, 6, 7], [10, 2])],
    [Encoded([11], [12, 13, 14, 15, 2]), Encoded([11], [2])],
]
REWARDS = [[1.0, -2.0], [0.5, 2.5]]
FIRST = 2 * (1 + 4 + 0.25 + 6.25) / 4  # the loss of a head that tells 0


@pytest.fixture(params=[True, False], ids=["packed", "padded"])
def scorer(request: pytest.FixtureRequest, tiny: Path) -> Scorer:
    found = Scorer(load_policy(tiny), pad=0)
    if not request.param:
        found.policy.set_attn_implementation("sdpa")
        found.packs = False
    return found


def losses(
    scorer: Scorer,
    head: torch.nn.Linear,
    *,
    reference: Scorer | None = None,
    budget: int = 1000,
    precision: str = "float32",
) -> tuple[float, float]:
    """Value loss and KL; without a reference the policy is its own, which it does not move from."""
    with_gradient = value_loss(
        scorer, reference or scorer, head, ROWS, REWARDS, budget=budget, precision=precision
    )
    return with_gradient["value/loss"], with_gradient["value/kl"]


def by_hand(scorer: Scorer, head: torch.nn.Linear) -> torch.Tensor:
    """Each completion alone: its mean squared error before every token, and before the last."""
    losses = []
    for row, rewards in zip(ROWS, REWARDS, strict=True):
        for (prompt, completion), reward in zip(row, rewards, strict=True):
            ids = torch.tensor([prompt + completion])
            states = scorer.policy.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            told = head(states[len(prompt) - 1 : -1]).squeeze(-1)
            losses.append((told - reward).square().mean() + (told[-1] - reward).square())
    return torch.stack(losses).mean()


def test_a_new_head_tells_nothing(scorer: Scorer) -> None:
    """Its first loss is twice the mean square of the rewards; the policy gets no gradient."""
    found, kl = losses(scorer, new_head(scorer))
    assert found == pytest.approx(FIRST)
    assert kl == pytest.approx(0, abs=1e-6)
    gradients = [p.grad for p in scorer.parameters() if p.grad is not None]
    assert gradients and all(gradient.abs().max() < 1e-6 for gradient in gradients)


@pytest.mark.parametrize("budget", [1000, 1])
def test_loss_and_gradient_are_those_by_hand(budget: int, tiny: Path, scorer: Scorer) -> None:
    head, plain = new_head(scorer), Scorer(load_policy(tiny), pad=0)
    plain.policy.set_attn_implementation("sdpa")
    torch.manual_seed(0)
    torch.nn.init.normal_(head.weight)
    expected = by_hand(plain, head)
    expected.backward()
    wanted = {name: p.grad for name, p in plain.named_parameters()}
    of_head, head.weight.grad = head.weight.grad, None
    found, _ = losses(scorer, head, budget=budget)
    assert found == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(head.weight.grad, of_head, rtol=1e-4, atol=1e-5)
    for name, parameter in scorer.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-4)
    assert any(p.grad is not None and p.grad.any() for p in scorer.parameters())


def test_the_head_is_in_float32_under_bfloat16(scorer: Scorer) -> None:
    head = new_head(scorer)
    found, _ = losses(scorer, head, precision="bfloat16")
    assert found == pytest.approx(FIRST)
    assert head.weight.grad is not None and head.weight.grad.dtype == torch.float32


def test_a_held_policy_is_pulled_to_the_reference_by_the_exact_kl(
    tiny: Path, scorer: Scorer
) -> None:
    reference = Scorer(load_policy(tiny).eval(), pad=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    plain = load_policy(tiny)
    plain.load_state_dict(scorer.policy.state_dict())
    kl = torch.zeros(())
    for row in ROWS:
        for prompt, completion in row:
            ids = torch.tensor([prompt + completion])
            with torch.no_grad():
                theirs = reference.policy(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            ours = plain(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            kl = kl + (theirs.exp() * (theirs - ours)).sum() / 4
    (HOLD * kl).backward()
    found, apart = losses(scorer, new_head(scorer), reference=reference)
    assert apart == pytest.approx(float(kl), rel=1e-4)
    assert found == pytest.approx(FIRST)
    for (name, parameter), wanted in zip(
        scorer.policy.named_parameters(), plain.parameters(), strict=True
    ):
        torch.testing.assert_close(
            parameter.grad,
            wanted.grad,
            rtol=1e-3,
            atol=1e-5,
            msg=lambda text, n=name: f"{n} {text}",
        )


def test_a_model_whose_logits_are_no_projection_of_its_states_is_told_of(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(load_policy(tiny), pad=0)
    monkeypatch.setattr(scorer.policy, "_betaflow_projects", False)
    with pytest.raises(UserError, match="value_steps to 0"):
        new_head(scorer)
