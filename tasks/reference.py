"""Stage `reference`: log pi_ref of every completion, once for the whole sweep -> out/reference."""

from __future__ import annotations

import pandas as pd

from betaflow.config import load_params
from betaflow.io import atomic_directory, read_jsonl
from betaflow.policy.loading import load_policy, load_tokenizer
from betaflow.policy.logps import all_sequence_logps
from tasks._inputs import encode_pairs
from tasks._main import run, set_threads


def main() -> None:
    """Write a Parquet file a split: id, and log-probability and tokens of both completions."""
    params = load_params()
    set_threads(params.reference.threads)
    trust = params.model.trust_remote_code
    policy = load_policy("out/sft", trust_remote_code=trust).eval()
    tokenizer = load_tokenizer("out/sft", trust_remote_code=trust)
    with atomic_directory("out/reference") as folder:
        for split in ("train", "eval"):
            rows = read_jsonl(f"out/pairs/{split}.jsonl")
            columns = {"id": [row["id"] for row in rows]}
            for name, sequences in zip(
                ("chosen", "rejected"), encode_pairs(tokenizer, rows), strict=True
            ):
                logps = all_sequence_logps(
                    policy,
                    sequences,
                    pad=tokenizer.pad_token_id,
                    batch_size=params.reference.micro_batch_size,
                    precision=params.model.precision,
                )
                columns[f"{name}_logps"] = logps.tolist()
                columns[f"{name}_tokens"] = [len(s.completion) for s in sequences]
            pd.DataFrame(columns).to_parquet(folder / f"{split}.parquet", index=False)
            print(f"{split}: {len(rows)} pairs")


if __name__ == "__main__":
    run(main)
