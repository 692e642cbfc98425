"""Where training starts: the policy is the reference."""

from __future__ import annotations

from betaflow.errors import UserError

START_KL = 1e-3  # nats a completion: float error of two forward passes, generously


def require_same(kl: float) -> None:
    """Before the first step policy and reference are one: KL(pi_ref || pi_ref) = 0.

    Args:
        kl: exact KL between the two, nats a completion.

    Raises:
        UserError: it is not 0, but for float error.
    """
    if not abs(kl) <= START_KL:
        raise UserError(
            f"before training the policy's KL from the reference is {kl:.1e} nats a "
            "completion, not 0: they are not the same model, or one of them has dropout on"
        )
