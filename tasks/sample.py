"""Stage `sample`: one arm's completions over prompts x temperatures x seeds -> out/samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from betaflow.config import Params, load_params
from betaflow.data.tokenise import Encoded
from betaflow.evaluation.kl import sequence_kl
from betaflow.io import atomic_file
from betaflow.policy.loading import load_policy, load_reward_model, load_tokenizer
from betaflow.policy.rewards import all_sequence_scores
from betaflow.sampling.engine import Completion, Engine, Request, draw_seed, open_engine
from betaflow.sampling.parity import release, require_parity
from tasks._arguments import model_argument
from tasks._inputs import held_out_prompts, prompt_rows
from tasks._main import forget_checkpoints, run, set_threads

BATCH = 64


def main() -> None:
    """Draw and score the completions of the arm that the command line names; write them."""
    params = load_params()
    arm = model_argument(__doc__, params)
    forget_checkpoints(arm.name)
    frame = samples(params, arm.name, arm.model_dir)
    with atomic_file(f"out/samples/{arm.name}.parquet") as path:
        frame.to_parquet(path, index=False)


def samples(params: Params, name: str, folder: str | Path) -> pd.DataFrame:
    """A row a completion, as `sample` asks, of the model in `folder`, scored.

    The same draws for the same `name`; independent ones for another.

    Raises:
        UserError: the engine's log-probabilities are not Hugging Face's.
    """
    settings, trust = params.sample, params.model.trust_remote_code
    tokenizer = load_tokenizer(folder, trust_remote_code=trust)
    prompts = _prompts(params, tokenizer)
    set_threads(settings.threads)
    engine = open_engine(
        settings.engine,
        folder,
        threads=settings.threads,
        precision=params.model.precision,
        batch_size=BATCH,
        trust_remote_code=trust,
    )
    rows, drawn = _draw(engine, name, prompts, params)
    print(f"{name}: {len(rows)} completions by {engine.name}", flush=True)
    release(engine)
    sequences = [Encoded(row.pop("ids"), c.token_ids) for row, c in zip(rows, drawn, strict=True)]
    frame = pd.DataFrame(rows)
    _score(frame, sequences, folder, params)
    gap = require_parity(
        frame["logprob"].tolist(),
        frame["policy_logprob"].tolist(),
        frame["completion_tokens"].tolist(),
        tolerance=settings.logprob_tolerance,
        what=f"{settings.engine} on {folder}",
    )
    reward = frame["gold_reward" if params.data.source == "world" else "reward_model"]
    print(f"{name}: mean reward {reward.mean():.3f}, log-probs within {gap:.1e} of Hugging Face's")
    return frame


def _prompts(params: Params, tokenizer: Any) -> list[dict[str, Any]]:
    longest, settings = params.pairs.max_prompt_tokens, params.sample
    inside = held_out_prompts(tokenizer, longest, settings.prompts)
    outside = prompt_rows(tokenizer, "prompts_ood", longest, settings.out_of_domain)
    return [{**row, "domain": "in"} for row in inside] + [
        {**row, "domain": "out"} for row in outside[: settings.out_of_domain]
    ]


def _draw(
    engine: Engine, name: str, prompts: list[dict[str, Any]], params: Params
) -> tuple[list[dict[str, Any]], list[Completion]]:
    """One completion for each prompt, temperature and seed (greedy decoding needs no seed)."""
    settings = params.sample
    rows, requests = [], []
    for temperature in settings.temperatures:
        for seed in settings.seeds[:1] if temperature == 0 else settings.seeds:
            for prompt in prompts:
                # An arm's own: a win rate is of independent draws, whatever models are compared.
                draw = draw_seed("sample", name, seed, prompt["id"])
                requests.append(Request(prompt["ids"], temperature, draw, settings.max_new_tokens))
                rows.append(
                    {
                        "prompt_id": prompt["id"],
                        "domain": prompt["domain"],
                        "prompt": prompt["text"],
                        "temperature": float(temperature),
                        "seed": seed,
                        "ids": prompt["ids"],
                    }
                )
    drawn = engine.generate(requests)
    for row, completion in zip(rows, drawn, strict=True):
        row |= {
            "completion": completion.text,
            "finish_reason": completion.finish_reason,
            "completion_tokens": len(completion.token_ids),
            "logprob": completion.logprob,
        }
    return rows, drawn


def _score(
    frame: pd.DataFrame, sequences: list[Encoded], folder: str | Path, params: Params
) -> None:
    """Add KL, log-probabilities and rewards to the samples."""
    trust = params.model.trust_remote_code
    tokenizer = load_tokenizer(folder, trust_remote_code=trust)
    options = {
        "pad": tokenizer.pad_token_id,
        "batch_size": BATCH,
        "precision": params.model.precision,
    }
    policy = load_policy(folder, trust_remote_code=trust).eval()
    reference = load_policy("out/sft", trust_remote_code=trust).eval()
    values = sequence_kl(policy, reference, sequences, **options)
    frame["policy_logprob"] = values.policy_logps.numpy().astype("float64")
    frame["reference_logprob"] = values.reference_logps.numpy().astype("float64")
    # Only completions drawn at T = 1 are draws from the policy that the KL is about.
    frame["kl"] = values.kl.numpy().astype("float64")
    frame.loc[frame["temperature"] != 1.0, "kl"] = float("nan")
    del policy, reference
    scorer = load_reward_model("out/reward", trust_remote_code=trust).eval()
    frame["reward_model"] = (
        all_sequence_scores(scorer, sequences, **options).numpy().astype("float64")
    )
    if params.data.source == "world":
        from betaflow.worlds.sentiment import gold_reward

        texts = frame["prompt"] + frame["completion"]
        frame["gold_reward"] = [gold_reward(text) for text in texts]
    else:
        frame["gold_reward"] = float("nan")


if __name__ == "__main__":
    run(main, parses=True)
