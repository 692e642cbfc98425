"""Stage `reward`: the Bradley-Terry reward model, from pi_ref -> out/reward."""

from __future__ import annotations

from betaflow.config import load_params
from betaflow.data.tokenise import Limits
from betaflow.io import read_jsonl
from betaflow.policy.loading import load_reward_model, load_tokenizer
from betaflow.training.reward import train_reward
from tasks import tracking
from tasks._inputs import encode_pairs
from tasks._main import run, set_threads
from tasks._training import finish, training_fingerprint


def main() -> None:
    """Train the reward model; its held-out accuracy goes into `summary.json`."""
    params = load_params()
    set_threads(params.reward.threads)
    trust = params.model.trust_remote_code
    model = load_reward_model("out/sft", trust_remote_code=trust, new_head_seed=params.reward.seed)
    tokenizer = load_tokenizer("out/sft", trust_remote_code=trust)
    model.config.pad_token_id = tokenizer.pad_token_id
    limits = Limits.of(params.pairs)
    pairs, held_out = (
        encode_pairs(tokenizer, read_jsonl(f"out/pairs/{split}.jsonl"), limits)
        for split in ("train", "eval")
    )
    settings = {
        "reward": params.reward.model_dump(),
        "pairs": limits._asdict(),
        "precision": params.model.precision,
    }
    identity = training_fingerprint("reward", settings)
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
        trained, figures = train_reward(
            model,
            pairs,
            held_out,
            params.reward,
            pad=tokenizer.pad_token_id,
            precision=params.model.precision,
            fingerprint=identity,
            on_step=log.step,
        )
        finish("out/reward", model, tokenizer, trained, figures, about, log)


if __name__ == "__main__":
    run(main)
