"""Run by test_handover.py in a process of its own: vLLM changes torch for all of a process.

For each model folder given: open vLLM, change the policy a parameter at a time, with and without
handing over, and print what came of it as JSON.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from betaflow.data.tokenise import Encoded
from betaflow.errors import UserError
from betaflow.policy.loading import load_policy, load_tokenizer
from betaflow.sampling.engine import Engine, Request, open_engine
from betaflow.sampling.handover import hand_over
from betaflow.sampling.hf_engine import HFEngine
from betaflow.sampling.parity import release

PROMPTS = [[1, 30, 31], [1, 40], [1, 50, 51, 52, 53]]
TOLERANCE = 1e-4


class Forgetful:
    """An engine that draws on with the weights it has."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.tokenizer = engine.name, engine.tokenizer
        self.max_length = engine.max_length
        self.generate, self.score = engine.generate, engine.score

    def load_weights(self, model: Any) -> None:
        pass


def gap(engine: Any, policy: Any, sequences: list[Encoded]) -> float | None:
    """What `hand_over` returns, None where it raises."""
    try:
        return hand_over(engine, policy, sequences, tolerance=TOLERANCE)
    except UserError:
        return None


def states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@torch.no_grad()
def change(parameter: torch.Tensor) -> None:
    spread = float(parameter.std()) if parameter.dim() > 1 else 0.3
    parameter.add_(torch.randn_like(parameter) * spread / 2)


def trial(folder: str, count: int) -> dict[str, Any]:
    """`count`: how many single tokens to draw from the changed policy."""
    torch.manual_seed(0)
    before = states()
    policy = load_policy(folder)
    engine: Any = open_engine("vllm", folder, threads=1)
    requests = [Request(p, t, s, 8) for t in (0.0, 1.0) for s in (1, 2) for p in PROMPTS]
    drawn = engine.generate(requests)
    undisturbed = states() == before
    sequences = [Encoded(r.prompt_ids, c.token_ids) for r, c in zip(requests, drawn, strict=True)]
    forgetful = Forgetful(engine)
    gaps: dict[str, Any] = {"as loaded": [gap(forgetful, policy, sequences)]}
    for name, parameter in policy.named_parameters():
        change(parameter)
        gaps[name] = [gap(one, policy, sequences) for one in (forgetful, engine)]
    plain = HFEngine(policy, load_tokenizer(folder), 16)
    now = engine.generate(requests)
    pairs = [(r.prompt_ids, c.token_ids) for r, c in zip(requests, now, strict=True)]
    tokens = Counter(
        one.token_ids[0]
        for one in engine.generate([Request(PROMPTS[0], 1.0, seed, 1) for seed in range(count)])
    )
    with torch.no_grad():
        chances = torch.softmax(policy(torch.tensor([PROMPTS[0]])).logits[0, -1].float(), -1)
    release(engine)
    return {
        "gaps": gaps,
        "undisturbed": undisturbed,
        "before": [c.token_ids for c in drawn],
        "now": [c.token_ids for c in now],
        "logprobs": [c.logprob for c in now],
        "expected": [s.logprob for s in plain.score(pairs)],
        "greedy": [s.is_greedy for s in plain.score(pairs)],
        "counts": [tokens[token] for token in range(len(chances))],
        "chances": chances.tolist(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {Path(f).name: trial(f, 2048 if n == 0 else 1) for n, f in enumerate(sys.argv[1:])}
    print("RESULT" + json.dumps(found))
