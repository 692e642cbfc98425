"""Does an engine compute the same log-probabilities as Hugging Face? Checked after each load."""

from __future__ import annotations

from betaflow.errors import UserError


def require_parity(
    engine: list[float],
    hugging_face: list[float],
    tokens: list[int],
    *,
    tolerance: float,
    what: str,
) -> float:
    """Stop if an engine's sequence log-probabilities stray from Hugging Face's.

    Args:
        engine: summed log-probabilities under the engine, nats.
        hugging_face: the same sequences' under transformers.
        tokens: tokens summed over, of each sequence.
        tolerance: largest gap allowed, nats a token.

    Returns:
        The largest gap, nats a token.

    Raises:
        UserError: the gap is larger, or there is nothing to compare.
    """
    if not engine:
        raise UserError(f"{what}: no sequence to compare log-probabilities on")
    gap = max(abs(a - b) / max(n, 1) for a, b, n in zip(engine, hugging_face, tokens, strict=True))
    if not gap <= tolerance:
        raise UserError(
            f"{what}: the engine's log-probabilities differ from Hugging Face's by up to {gap:.2e} "
            f"nats a token (allowed: {tolerance:.0e}). The engine may have loaded other weights, "
            "or computes in another precision: raise sample.logprob_tolerance only if you know why."
        )
    return gap
