"""Stage `reference`: log pi_ref of every completion, once for the whole sweep -> out/reference."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd

from betaflow.config import Params, load_params
from betaflow.data.tokenise import Encoded, Limits
from betaflow.io import LOCAL, atomic_directory, read_jsonl, write_json
from betaflow.policy.flops import forward_flops
from betaflow.policy.loading import load_policy, load_tokenizer
from betaflow.policy.packing import all_computed, all_sequences
from betaflow.policy.scorer import Scorer
from tasks._inputs import encode_pairs
from tasks._main import run, set_threads


def main() -> None:
    """Write a Parquet file a split: id, and log-probability and tokens of both completions.

    `summary.json` has what the training pairs cost, counted as a trainer's tokens are: those of
    every sequence, the prompt in each; a completion of several pairs is computed, and counted,
    once. Its FLOPs are of the tokens computed, where completions share a prompt. Wall time is kept
    outside DVC.
    """
    params = load_params()
    set_threads(params.reference.threads)
    trust = params.model.trust_remote_code
    tokenizer = load_tokenizer("out/sft", trust_remote_code=trust)
    policy = load_policy("out/sft", trust_remote_code=trust).eval()
    scorer = Scorer(policy, tokenizer.pad_token_id)
    scorer.explain()
    with atomic_directory("out/reference") as folder:
        for split in ("train", "eval"):
            rows = read_jsonl(f"out/pairs/{split}.jsonl")
            began = time.monotonic()
            chosen, rejected = encode_pairs(tokenizer, rows, Limits.of(params.pairs))
            table = reference_table(
                scorer, rows, chosen, rejected, params, label=f"reference-{split}"
            )
            table.to_parquet(folder / f"{split}.parquet", index=False)
            if split == "train":
                seconds = time.monotonic() - began
                distinct = {(tuple(s.prompt), tuple(s.completion)) for s in chosen + rejected}
                tokens = sum(len(prompt) + len(completion) for prompt, completion in distinct)
                flops = all_computed(scorer, chosen + rejected) * forward_flops(policy)
                summary = {"train_tokens": tokens, "train_flops": flops}
                write_json(folder / "summary.json", summary)
            print(f"{split}: {len(rows)} pairs")
    write_json(LOCAL / "timings" / "reference.json", {"train_seconds": round(seconds, 2)})


def reference_table(
    scorer: Scorer,
    rows: list[dict[str, Any]],
    chosen: list[Encoded],
    rejected: list[Encoded],
    params: Params,
    *,
    label: str,
) -> pd.DataFrame:
    """Each pair's id, and log-probability (nats) and tokens of both its completions."""
    logps = all_sequences(
        scorer,
        chosen + rejected,  # together: completions share their prompts
        budget=params.reference.micro_batch_tokens,
        precision=params.model.precision,
        label=label,
    )
    columns: dict[str, list[str] | list[float] | list[int]] = {"id": [row["id"] for row in rows]}
    for name, side, values in zip(
        ("chosen", "rejected"), (chosen, rejected), logps.view(2, -1), strict=True
    ):
        columns[f"{name}_logps"] = values.tolist()
        columns[f"{name}_tokens"] = [len(s.completion) for s in side]
    return pd.DataFrame(columns)


if __name__ == "__main__":
    run(main)
