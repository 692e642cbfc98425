"""Stage `reward`: the Bradley-Terry reward model, from pi_ref -> out/reward."""

from __future__ import annotations

import pandas as pd

from betaflow.config import load_params
from betaflow.data.tokenise import Limits
from betaflow.io import read_jsonl
from betaflow.policy.loading import load_reward_model, load_tokenizer
from betaflow.training.reward import train_reward
from tasks import tracking
from tasks._inputs import encode_pairs, stage_fingerprint
from tasks._main import run, set_threads
from tasks._training import finish


def main() -> None:
    """Train the reward model; held-out accuracy goes into `summary.json`, margins into a table."""
    params = load_params()
    set_threads(params.reward.threads)
    trust = params.model.trust_remote_code
    model = load_reward_model("out/sft", trust_remote_code=trust, new_head_seed=params.reward.seed)
    tokenizer = load_tokenizer("out/sft", trust_remote_code=trust)
    model.config.pad_token_id = tokenizer.pad_token_id
    limits = Limits.of(params.pairs)
    rows = {split: read_jsonl(f"out/pairs/{split}.jsonl") for split in ("train", "eval")}
    pairs, held_out = (encode_pairs(tokenizer, rows[split], limits) for split in rows)
    settings = {
        "reward": params.reward.model_dump(),
        "pairs": limits._asdict(),
        "precision": params.model.precision,
    }
    identity = stage_fingerprint("reward", settings)
    about = {
        "arm": "reward",
        "method": "reward",
        "beta": None,
        "learning_rate": params.reward.learning_rate,
        "seed": params.reward.seed,
        "fingerprint": identity,
        "settings": settings,
    }
    with tracking.training_run(params, about) as log:
        trained, figures, margins = train_reward(
            model,
            pairs,
            held_out,
            params.reward,
            pad=tokenizer.pad_token_id,
            precision=params.model.precision,
            fingerprint=identity,
            on_step=log.step,
        )
        table = pd.DataFrame({"id": [row["id"] for row in rows["eval"]], "margin": margins})
        finish(
            "out/reward", model, tokenizer, trained, figures, about, log,
            tables={"held_out.parquet": table},
        )  # fmt: skip


if __name__ == "__main__":
    run(main)
