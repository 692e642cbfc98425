"""Does an engine compute the same log-probabilities as Hugging Face? Checked after each load."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np

from betaflow.data.tokenise import Encoded
from betaflow.errors import UserError
from betaflow.sampling.engine import Engine


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
    gaps = [abs(a - b) / max(n, 1) for a, b, n in zip(engine, hugging_face, tokens, strict=True)]
    gap = float(np.max(gaps))  # NaN where one is, which Python's own `max` may pass over
    if not gap <= tolerance:
        raise UserError(
            f"{what}: the engine's log-probabilities differ from Hugging Face's by up to {gap:.2e} "
            f"nats a token (allowed: {tolerance:.0e}). The engine may have loaded other weights, "
            "or computes in another precision: raise logprob_tolerance only if you know why."
        )
    return gap


def check_engine(
    engine: Engine,
    path: str | Path,
    sequences: list[Encoded],
    *,
    tolerance: float,
    trust_remote_code: bool = False,
) -> None:
    """Compare a freshly loaded engine's scores of some sequences with Hugging Face's."""
    from betaflow.sampling.hf_engine import HFEngine

    if engine.name == "hf":
        return
    pairs = [(s.prompt, s.completion) for s in sequences]
    plain = HFEngine.load(path, batch_size=16, trust_remote_code=trust_remote_code)
    require_parity(
        [s.logprob for s in engine.score(pairs)],
        [s.logprob for s in plain.score(pairs)],
        [len(target) for _, target in pairs],
        tolerance=tolerance,
        what=f"{engine.name} on {path}",
    )


def release(engine: Engine) -> None:
    """Give back what an engine holds, before other models are loaded beside it."""
    import torch

    engine.__dict__.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
