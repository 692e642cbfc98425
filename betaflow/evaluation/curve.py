"""Where a policy stands while it trains: draws of held-out prompts, with their KL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
from torch import nn

from betaflow.data.tokenise import Batch, Encoded, collate
from betaflow.policy.loading import autocast, device
from betaflow.policy.logps import by_length, token_statistics
from betaflow.sampling.engine import Request
from betaflow.sampling.hf_engine import HFEngine

MEANS = ("kl", "log_ratio", "entropy", "completion_tokens", "finished", "gold_reward")


class Probe(NamedTuple):
    """What is asked of the policy at every point: the same requests, with the same seeds.

    Attributes:
        prompts: rows with `id`, `text` and token `ids`.
        draws: completions a prompt, at T = 1.
        gold_reward: the reward of a whole text; None where it is not known.
    """

    prompts: list[dict[str, Any]]
    draws: int
    max_new_tokens: int
    batch_size: int
    precision: str
    gold_reward: Callable[[str], float] | None


def evaluations(steps: int, points: int) -> set[int]:
    """The numbers of steps done at which to look: evenly spaced, the last at the end."""
    return {-(-steps * n // points) for n in range(1, points + 1)}


def probe(policy: nn.Module, reference: nn.Module, engine: HFEngine, asked: Probe) -> pd.DataFrame:
    """A row a draw: `prompt_id`, `draw`, `completion`, `token_ids`, and `MEANS`.

    `kl` is the exact KL of the next-token distributions summed over the draw, nats; `log_ratio`
    log pi / pi_ref of it, nats (times beta: the implicit reward); `entropy` a mean, nats a token.
    """
    rows: list[dict[str, Any]] = []
    requests = []
    for index, prompt in enumerate(asked.prompts):
        for draw in range(asked.draws):
            seed = draw * 1_000_003 + index
            requests.append(Request(prompt["ids"], 1.0, seed, asked.max_new_tokens))
            rows.append({"prompt_id": prompt["id"], "draw": draw})
    drawn = engine.generate(requests)
    sequences = [Encoded(r.prompt_ids, c.token_ids) for r, c in zip(requests, drawn, strict=True)]
    pad = engine.tokenizer.pad_token_id
    for group in by_length(sequences, asked.batch_size):
        batch = collate([sequences[i] for i in group], pad).to(device())
        for index, values in zip(group, _statistics(policy, reference, batch, asked), strict=True):
            rows[index] |= values
    for index, (row, completion) in enumerate(zip(rows, drawn, strict=True)):
        row |= {
            "completion": completion.text,
            "token_ids": completion.token_ids,
            "completion_tokens": len(completion.token_ids),
            "finished": completion.finish_reason == "stop",
        }
        if asked.gold_reward is not None:
            text = asked.prompts[index // asked.draws]["text"] + completion.text
            row["gold_reward"] = asked.gold_reward(text)
    return pd.DataFrame(rows)


def _statistics(
    policy: nn.Module, reference: nn.Module, batch: Batch, asked: Probe
) -> list[dict[str, float]]:
    with autocast(asked.precision):
        tokens = token_statistics(policy, reference, batch)
    lengths = batch.completion_mask.sum(-1)
    columns = {
        "kl": tokens.kl.sum(-1),
        "log_ratio": (tokens.logps - tokens.reference_logps).sum(-1),
        "entropy": tokens.entropy.sum(-1) / lengths,
    }
    lists = (column.tolist() for column in columns.values())
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def means(frame: pd.DataFrame) -> dict[str, float]:
    """The means of `MEANS` over draws, named `curve/…`."""
    return {f"curve/{key}": float(frame[key].mean()) for key in MEANS if key in frame}
