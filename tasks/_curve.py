"""The arms' curves: held-out prompts are looked at while an arm trains -> `curve.parquet`.

Each look is written to a file of its own at once, since a stage that is stopped goes on from a
checkpoint behind it; what the checkpoint lacks is looked at, and written, again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from betaflow.config import Params
from betaflow.errors import UserError
from betaflow.evaluation.curve import Probe, evaluations, means, probe
from betaflow.io import LOCAL, atomic_file
from betaflow.policy.loading import load_policy
from betaflow.sampling.hf_engine import HFEngine
from betaflow.training.distributed import is_main
from tasks._inputs import held_out_prompts

BATCH = 128


def curve_probe(
    params: Params, arm: str, policy: Any, generator: Any, tokenizer: Any, steps: int
) -> Callable[[int], dict[str, float]] | None:
    """What a trainer calls with the steps done; None where `curve.points` is 0.

    Args:
        generator: what draws from the policy: itself, or what it is wrapped in.
    """
    if not params.curve.points:
        return None
    asked = held_out_probe(params, tokenizer)
    trust = params.model.trust_remote_code
    reference = load_policy("out/sft", trust_remote_code=trust).eval()
    engine = HFEngine(generator, tokenizer, BATCH)
    wanted = evaluations(steps, params.curve.points)

    def look(done: int) -> dict[str, float]:
        if done not in wanted:
            return {}
        training = policy.training
        policy.eval()
        frame = probe(policy, reference, engine, asked)
        policy.train(training)
        if is_main():
            with atomic_file(_file(arm, done)) as path:
                frame.to_parquet(path, index=False)
        return means(frame)

    return look


def about_looks(params: Params) -> dict[str, Any]:
    """The settings that an arm's looks depend on, for its identity and its record."""
    return {"curve": params.curve.model_dump(), "curve_tokens": params.sample.max_new_tokens}


def held_out_probe(params: Params, tokenizer: Any) -> Probe:
    """What is asked at every look: of every arm the same, so that their draws are alike."""
    gold: Callable[[str], float] | None = None
    if params.data.source == "world":
        from betaflow.worlds.sentiment import gold_reward

        gold = gold_reward
    return Probe(
        held_out_prompts(tokenizer, params.pairs.max_prompt_tokens, params.curve.prompts),
        params.curve.draws,
        params.sample.max_new_tokens,
        BATCH,
        params.model.precision,
        gold,
    )


def collect(arm: str, metrics: Sequence[dict[str, Any]]) -> pd.DataFrame | None:
    """All looks of an arm, with the `step` each was taken after; None where there was none."""
    done = [row["step"] + 1 for row in metrics if "curve/kl" in row]
    if not done:
        return None
    missing = [step for step in done if not _file(arm, step).is_file()]
    if missing:
        raise UserError(
            f"{_file(arm, missing[0])} is missing: {arm} was begun on another machine, or the file "
            f"was deleted. Delete out/.local/checkpoints/{arm} and run again"
        )
    return pd.concat(
        [pd.read_parquet(_file(arm, step)).assign(step=step) for step in done], ignore_index=True
    )


def _file(arm: str, done: int) -> Path:
    return LOCAL / "curves" / arm / f"{done:07d}.parquet"
