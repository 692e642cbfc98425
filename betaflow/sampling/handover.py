"""Giving the engine of the rollouts the policy's weights, and checking that they arrived."""

from __future__ import annotations

from functools import partial

from torch import nn

from betaflow.data.tokenise import Encoded
from betaflow.policy.logps import in_batches, sequence_logps
from betaflow.sampling.engine import Engine, HoldsWeights
from betaflow.sampling.parity import require_parity


def hand_over(
    engine: Engine, policy: nn.Module, sequences: list[Encoded], *, tolerance: float
) -> float:
    """Let the engine draw from the policy as it is now, and check that it does.

    Args:
        engine: takes the policy's weights if it holds its own; else it draws from the policy.
        sequences: both score these; a handful will do, best of the policy's own drawing.
        tolerance: largest gap between the two, nats a token. In float32 it is below 1e-5 if all
            is well.

    Returns:
        The largest gap, nats a token.

    Raises:
        UserError: the gap is larger, or there is no sequence.
    """
    if isinstance(engine, HoldsWeights):
        engine.load_weights(policy)
    logps = in_batches(
        partial(sequence_logps, policy),
        sequences,
        pad=engine.tokenizer.pad_token_id,
        batch_size=16,
        precision="float32",
    )
    return require_parity(
        [scored.logprob for scored in engine.score([(s.prompt, s.completion) for s in sequences])],
        logps.tolist(),
        [len(s.completion) for s in sequences],
        tolerance=tolerance,
        what=f"{engine.name} after it was given the policy's weights",
    )
