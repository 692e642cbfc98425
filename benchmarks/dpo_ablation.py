"""What each part of the DPO engine gains: the same steps with one part more, line by line.

    .venv/bin/python benchmarks/dpo_ablation.py --model DIR --pairs FILE [--steps 10] [--threads 2]

Each line adds to the one above it: a plain padded forward pass of whole batches with all logits;
the projection at completion positions alone, in chunks; packing with shared prompts; oneDNN's
float32 linear layers; bfloat16; torch.compile. A step is a forward and a backward pass of a batch
of pairs, without the optimizer. Lines take turns, step by step, so that what else the machine does
meets them all; medians over the steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _pairs import read_pairs
from torch.nn.functional import cross_entropy

from betaflow.data.tokenise import Encoded, collate, encode
from betaflow.policy import linear
from betaflow.policy.loading import autocast, load_policy, load_tokenizer
from betaflow.policy.logps import sequence_logps
from betaflow.policy.scorer import Scorer
from betaflow.training import loop
from betaflow.training.prepare import layers

BUDGET = 2048  # tokens of a packed forward pass
Group = list[Encoded]


def plain(model: Any, groups: list[Group], pad: int) -> None:
    """What a trainer does that knows of nothing: pad, and make all logits."""
    batch = collate([s for group in groups for s in group], pad)
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    labels = batch.input_ids.masked_fill(~batch.completion_mask, -100)[:, 1:]
    logits = output.logits[:, :-1].float()
    cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()


def completions_alone(model: Any, groups: list[Group], pad: int) -> None:
    """The projection at the completions' positions, in chunks; padded still."""
    sequence_logps(model, collate([s for group in groups for s in group], pad)).sum().backward()


def packed(scorer: Scorer, groups: list[Group]) -> None:
    """Packed, prompts shared."""
    for members in scorer.bins(groups, BUDGET):
        scorer(scorer.batch([groups[i] for i in members])).sum().backward()


def variants(folder: Path, pad: int) -> dict[str, Callable[[list[Group]], None]]:
    """By name, what a step is."""
    models = [load_policy(folder).train() for _ in range(3)]
    scorers = [Scorer(model, pad) for model in models[1:]]
    for layer in layers(models[2]):
        layer.compile(dynamic=True)

    def with_onednn(on: bool, precision: str, step: Callable[[], None]) -> None:
        before, linear.ONEDNN = linear.ONEDNN, on and linear.ONEDNN
        try:
            with autocast(precision):
                step()
        finally:
            linear.ONEDNN = before

    return {
        "plain, padded, all logits": lambda groups: with_onednn(
            False, "float32", lambda: plain(models[0], groups, pad)
        ),
        "+ completions' logits alone": lambda groups: with_onednn(
            False, "float32", lambda: completions_alone(models[0], groups, pad)
        ),
        "+ packed, prompts shared": lambda groups: with_onednn(
            False, "float32", lambda: packed(scorers[0], groups)
        ),
        "+ oneDNN": lambda groups: with_onednn(True, "float32", lambda: packed(scorers[0], groups)),
        "+ bfloat16": lambda groups: with_onednn(
            True, "bfloat16", lambda: packed(scorers[0], groups)
        ),
        "+ torch.compile": lambda groups: with_onednn(
            True, "bfloat16", lambda: packed(scorers[1], groups)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=512)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tokenizer = load_tokenizer(given.model)
    texts, _ = read_pairs(given.pairs)
    groups: list[Group] = []
    for text in texts:
        sides = [encode(tokenizer, text["prompt"], text[name]) for name in ("chosen", "rejected")]
        if max(side.length for side in sides) <= given.max_length:
            groups.append(sides)
    ways = variants(given.model, tokenizer.pad_token_id)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    first: dict[str, float] = {}
    for step in range(given.steps + 2):
        batch = [groups[i] for i in loop.batch_indices(len(groups), given.batch_size, 0, step)]
        for name, way in ways.items():
            began = time.perf_counter()
            way(batch)
            seconds[name].append(time.perf_counter() - began)
            first.setdefault(name, seconds[name][0])
        print(f"step {step + 1} of {given.steps + 2}", file=sys.stderr, flush=True)
    shape = json.loads((given.model / "config.json").read_text(encoding="utf-8"))
    print(f"vocabulary {shape['vocab_size']}, {given.threads} thread(s), {given.steps} steps")
    print(f"{'':30}{'s a step':>10}{'gain':>8}{'in all':>8}{'first step':>12}")
    base = last = statistics.median(seconds["plain, padded, all logits"][2:])
    for name, found in seconds.items():
        median = statistics.median(found[2:])
        print(f"{name:30}{median:10.3f}{last / median:8.2f}{base / median:8.2f}{first[name]:12.1f}")
        last = median


if __name__ == "__main__":
    main()
