"""Drawing completions: `betaflow.sampling.decode` against transformers' `generate`, by turns.

    .venv/bin/python benchmarks/decode.py out/sft out/data/prompts_eval.jsonl [--threads 1]

Real tokens a second at each batch size, the median of the rounds, and their ratio. Both draw at
T = 1 from the same prompts; a draw's length differs, so tokens are counted and not calls.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from betaflow.io import read_jsonl
from betaflow.policy.loading import load_policy, load_tokenizer
from betaflow.sampling.decode import decode, generate

BUDGET = 64


def rate(
    draw: Any, model: Any, prompts: list[list[int]], first: int, tokens: dict[str, int]
) -> float:
    began = time.perf_counter()
    seeds = range(first, first + len(prompts))
    drawn = draw(model, prompts, seeds, temperature=1.0, budget=BUDGET, **tokens)
    return sum(len(one.token_ids) for one in drawn) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a model folder")
    parser.add_argument("prompts", help="a JSON-lines file of prompts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, tokenizer = load_policy(given.model).eval(), load_tokenizer(given.model)
    tokens = {"eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    ids = [tokenizer(row["prompt"]).input_ids for row in read_jsonl(given.prompts)]
    print("batch    decode  generate  ratio  (real tokens a second)")
    for size in (32, 128, 512):
        batch = (ids * (size // len(ids) + 1))[:size]
        found: list[tuple[float, float]] = []
        for round_ in range(given.rounds + 1):
            pair = [rate(d, model, batch, round_ * size, tokens) for d in (decode, generate)]
            found.append((pair[0], pair[1]))
        rounds = found[1:]  # the first warms up
        ours, theirs = (statistics.median(r[side] for r in rounds) for side in (0, 1))
        ratio = statistics.median(a / b for a, b in rounds)
        print(f"{size:5} {ours:9.0f} {theirs:9.0f} {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    main()
