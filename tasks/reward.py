"""Stage `reward`: the Bradley-Terry reward model, from pi_ref -> out/reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from betaflow.config import Params, RewardSettings, load_params
from betaflow.data.tokenise import Limits
from betaflow.io import read_jsonl
from betaflow.policy.loading import load_reward_model, load_tokenizer
from betaflow.training.reward import train_reward
from tasks import tracking
from tasks._inputs import encode_pairs, stage_fingerprint
from tasks._main import run, set_threads
from tasks._training import finish


def main() -> None:
    """Train the reward model on every pair."""
    params = load_params()
    settings = params.reward
    about = {
        "arm": "reward",
        "method": "reward",
        "beta": None,
        "learning_rate": settings.learning_rate,
        "seed": settings.seed,
    }
    rows, held_out = (read_jsonl(f"out/pairs/{split}.jsonl") for split in ("train", "eval"))
    train(params, settings, rows, held_out, "reward", about, "out/reward")


def train(
    params: Params,
    settings: RewardSettings,
    rows: list[dict[str, Any]],
    held_out_rows: list[dict[str, Any]],
    stage: str,
    about: dict[str, Any],
    output: str | Path,
) -> None:
    """Train a reward model; held-out accuracy goes into `summary.json`, margins into a table.

    Args:
        rows: pairs to train on.
        held_out_rows: pairs to evaluate on, and to stop early by.
        stage: of `dvc.yaml`.
        about: the `arm`'s name, and its point in the grid.
    """
    set_threads(settings.threads)
    trust = params.model.trust_remote_code
    model = load_reward_model("out/sft", trust_remote_code=trust, new_head_seed=settings.seed)
    tokenizer = load_tokenizer("out/sft", trust_remote_code=trust)
    model.config.pad_token_id = tokenizer.pad_token_id
    limits = Limits.of(params.pairs)
    pairs, held_out = (encode_pairs(tokenizer, some, limits) for some in (rows, held_out_rows))
    kept = {
        "reward": settings.model_dump(),
        "pairs": limits._asdict(),
        "precision": params.model.precision,
    }
    identity = stage_fingerprint(stage, {**kept, **about})
    about = {**about, "fingerprint": identity, "settings": kept}
    with tracking.training_run(params, about) as log:
        trained, figures, margins = train_reward(
            model,
            pairs,
            held_out,
            settings,
            pad=tokenizer.pad_token_id,
            precision=params.model.precision,
            fingerprint=identity,
            label=about["arm"],
            on_step=log.step,
        )
        table = pd.DataFrame({"id": [row["id"] for row in held_out_rows], "margin": margins})
        finish(
            output, model, tokenizer, trained, figures, about, log,
            tables={"held_out.parquet": table},
        )  # fmt: skip


if __name__ == "__main__":
    run(main)
