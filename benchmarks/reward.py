"""What packing gains the reward model: a step's passes over completions that share prompts.

    .venv/bin/python benchmarks/reward.py [--model out/sft] [--pairs out/pairs/train.jsonl]

A step is a forward and a backward pass over `--prompts` prompts with k completions each, in
micro-batches of 8 prompts, one thread; padded and packed take turns, medians. The completions are
those of the pairs, of whatever prompt, so that every k can be had.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path

import torch

from betaflow.data.tokenise import Encoded, collate, encode
from betaflow.io import read_jsonl
from betaflow.policy.loading import device, load_reward_model, load_tokenizer
from betaflow.policy.rewards import RewardScorer, sequence_scores

MICRO = 8  # prompts a pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("out/sft"))
    parser.add_argument("--pairs", type=Path, default=Path("out/pairs/train.jsonl"))
    parser.add_argument("--completions", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--prompts", type=int, default=32, help="of a step")
    parser.add_argument("--steps", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(given.model)
    model = load_reward_model(given.model, new_head_seed=0)
    scorer = RewardScorer(model, tokenizer.pad_token_id)
    rows = read_jsonl(given.pairs)
    texts = list(dict.fromkeys(row[side] for row in rows for side in ("chosen", "rejected")))
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))[: given.prompts]
    print("completions a prompt  padded, s  packed, s  ratio")
    for count in given.completions:
        drawn = random.Random(0)
        groups = [
            [encode(tokenizer, prompt, text) for text in drawn.sample(texts, count)]
            for prompt in prompts
        ]
        groups.sort(key=lambda group: max(s.length for s in group))

        def padded(part: list[list[Encoded]]) -> torch.Tensor:
            flat = [sequence for group in part for sequence in group]
            return sequence_scores(model, collate(flat, tokenizer.pad_token_id).to(device()))

        def packed(part: list[list[Encoded]]) -> torch.Tensor:
            return scorer(scorer.batch(part))  # type: ignore[no-any-return]

        seconds: dict[str, list[float]] = {"padded": [], "packed": []}
        for _ in range(given.steps + 1):  # the first warms up
            for name, score in (("padded", padded), ("packed", packed)):
                began = time.perf_counter()
                for start in range(0, len(groups), MICRO):
                    score(groups[start : start + MICRO]).sum().backward()
                seconds[name].append(time.perf_counter() - began)
                model.zero_grad()
        first, second = (statistics.median(spent[1:]) for spent in seconds.values())
        print(f"{count:20}  {first:9.3f}  {second:9.3f}  {first / second:5.2f}")


if __name__ == "__main__":
    main()
