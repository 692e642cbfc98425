"""Where training starts: the policy is the reference."""

from __future__ import annotations

from betaflow.errors import UserError

START_KL = 1e-3  # nats a completion: float error of two forward passes, generously
ROUNDED_KL = 5e-2  # the same under bfloat16, of policies that are computed by other kernels


def require_same(kl: float, limit: float = START_KL) -> None:
    """Before the first step policy and reference are one: KL(pi_ref || pi_ref) = 0.

    Args:
        kl: exact KL between the two, nats a completion.

    Raises:
        UserError: it is not 0, but for float error.
    """
    if not abs(kl) <= limit:
        raise UserError(
            f"before training the policy's KL from the reference is {kl:.1e} nats a "
            "completion, not 0: they are not the same model, or one of them has dropout on"
        )
