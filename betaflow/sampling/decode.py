"""Drawing completions with a transformers model, a token a pass, rows dropped as they end.

`generate` keeps every row to the end of the longest, copies its cache at each token and draws
with one generator a batch. Here a request's draws are a function of its own seed, whatever else
is in the batch, and most of what is computed is used (benchmarks/decode.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from betaflow.policy.loading import device

KEEP = 0.8  # rows are dropped from the batch once fewer than this share of it is still drawn


class Drawn(NamedTuple):
    """Token ids of a completion (up to EOS, that included) and their log-probability, nats."""

    token_ids: list[int]
    logprob: float


def decodes(model: Any) -> bool:
    """Whether `decode` can draw from this model: its cache is of attention layers alone.

    What wraps a model (say, a sharded one) draws by its own `generate`.
    """
    if not isinstance(model, PreTrainedModel) or getattr(model, "_is_stateful", False):
        return False
    layers = DynamicCache(config=model.config).layers
    return all(isinstance(layer, DynamicLayer) for layer in layers)


@torch.inference_mode()
def decode(
    model: Any,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    *,
    temperature: float,
    budget: int,
    eos: int,
    pad: int,
) -> list[Drawn]:
    """Draw a completion for each prompt, at most `budget` tokens each; temperature 0 is greedy.

    Log-probabilities are the model's own at T = 1.
    """
    place = device()
    ids, mask = _left_padded(prompts, pad)
    noise = torch.from_numpy(uniforms(seeds, budget)).to(place) if temperature > 0 else None
    cache = _cache(model, ids.shape[1] + budget)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    alive = torch.arange(len(prompts), device=place)
    tokens = torch.full((len(prompts), budget), -1, device=place)
    logps = torch.zeros(len(prompts), budget, device=place)
    for step in range(budget):
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        ).logits[:, -1].float()  # fmt: skip
        chosen = _choose(logits, temperature, None if noise is None else noise[alive, step])
        tokens[alive, step] = chosen
        taken = torch.log_softmax(logits, -1).gather(-1, chosen[:, None])
        logps[alive, step] = taken.squeeze(-1)
        ended = tokens[alive].eq(eos).any(-1)
        left = int((~ended).sum())
        if not left:
            break
        positions = positions[:, -1:] + 1
        if left < KEEP * len(alive):
            keep = (~ended).nonzero().squeeze(-1)
            cache.batch_select_indices(keep)
            alive, chosen, mask, positions = (t[keep] for t in (alive, chosen, mask, positions))
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
    return [_cut(*row, eos) for row in zip(tokens.tolist(), logps.tolist(), strict=True)]


def generate(
    model: Any,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    *,
    temperature: float,
    budget: int,
    eos: int,
    pad: int,
) -> list[Drawn]:
    """The same by transformers' `generate`, for any model; seeded by all the seeds together."""
    ids, mask = _left_padded(prompts, pad)
    how: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with torch.random.fork_rng(devices=[device()] if device().type == "cuda" else []):
        torch.manual_seed(hash(tuple(seeds)) % 2**63)
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=budget,
            eos_token_id=eos,
            pad_token_id=pad,
            output_logits=True,
            return_dict_in_generate=True,
            **how,
        )
    tokens = output.sequences[:, ids.shape[1] :]
    logps = [
        torch.log_softmax(logits.float(), -1).gather(-1, tokens[:, t, None]).squeeze(-1)
        for t, logits in enumerate(output.logits)
    ]
    found = zip(tokens.tolist(), torch.stack(logps, dim=1).tolist(), strict=True)
    return [_cut(*row, eos) for row in found]


def _left_padded(prompts: Sequence[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, `(prompts, tokens)`, each prompt at the right."""
    longest = max(len(ids) for ids in prompts)
    rows = [[pad] * (longest - len(ids)) + ids for ids in prompts]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    return torch.tensor(rows, device=device()), torch.tensor(mask, device=device())


def uniforms(seeds: Sequence[int], count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """`(seeds, count)` numbers in [0, 1): Philox, counter-based, keyed by each seed."""
    found = np.empty((len(seeds), count))
    for row, seed in zip(found, seeds, strict=True):
        np.random.Generator(np.random.Philox(key=seed % 2**64)).random(out=row)
    return found


def _choose(logits: torch.Tensor, temperature: float, noise: torch.Tensor | None) -> torch.Tensor:
    """The argmax, or the token at which the cumulative probability passes the noise, `(rows,)`."""
    if noise is None:
        return logits.argmax(-1)
    totals = torch.softmax(logits / temperature, -1).cumsum(-1, dtype=torch.float64)
    found = torch.searchsorted(totals, noise[:, None] * totals[:, -1:], right=True)
    return found.squeeze(-1).clamp_max(logits.shape[-1] - 1)


def _cut(tokens: list[int], logps: list[float], eos: int) -> Drawn:
    length = tokens.index(eos) + 1 if eos in tokens else len(tokens)
    return Drawn(tokens[:length], sum(logps[:length]))


def _cache(model: Any, tokens: int) -> DynamicCache:
    """An empty cache; layers that see every token have room for all of them from the start."""
    cache = DynamicCache(config=model.config)
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = _Roomy(tokens)
    return cache


class _Roomy(DynamicLayer):
    """Keys and values in buffers of their full length, which are not copied at every token."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.used = room, 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens' states behind the others', and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = [_buffer(t, self.room) for t in (key_states, value_states)]
        end = self.used + key_states.shape[-2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.used : end] = new
        self.used = end
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some rows."""
        old, self.buffers = self.buffers, []
        for buffer in old:
            kept = buffer[indices, :, : self.used]
            self.buffers.append(_buffer(kept, self.room))
            self.buffers[-1][:, :, : self.used] = kept


def _buffer(states: torch.Tensor, room: int) -> torch.Tensor:
    rows, heads, _, width = states.shape
    return states.new_empty(rows, heads, room, width)
