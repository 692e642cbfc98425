"""Attention over packed trees, as a transformers attention implementation.

Each token attends to its own branch and prefix and to nothing else: two calls of
scaled-dot-product attention for each tree, one for its prefix and one for its branches, so that
no score between trees is computed. A model that is switched to this implementation behaves as
with `sdpa` wherever no layout is given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from betaflow.policy.packed import Tree

NAME = "betaflow"
SHORT = 64  # tokens of a tree that one call computes faster than two
SHORT_HALF = 256  # tokens of a tree whose scores are all computed at once, bfloat16 on a CPU


class Unsupported(Exception):
    """This model's attention can't be computed over packed trees."""


class Layout:
    """The trees of a packed row, and their masks, made when first needed and shared by layers."""

    def __init__(self, trees: tuple[Tree, ...], device: torch.device) -> None:
        self.trees, self.device = trees, device
        self.tokens = [prefix + sum(branches) for prefix, branches in trees]
        self.longest = max(prefix + max(branches) for prefix, branches in trees)
        self._masks: dict[tuple[Tree, int | None], torch.Tensor] = {}

    def mask(self, tree: Tree, window: int | None) -> torch.Tensor:
        """What each token of a tree may attend to, `(tokens, tokens)`, true where it may."""
        if window is not None and window >= self.longest:
            window = None
        key = (tree, window)
        if key not in self._masks:
            self._masks[key] = tree_mask(tree, window).to(self.device)
        return self._masks[key]


def tree_mask(tree: Tree, window: int | None = None) -> torch.Tensor:
    """The mask of one tree: its own branch and the prefix, no later position, within a window."""
    prefix, branches = tree
    lengths = torch.tensor([prefix, *branches])
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    starts = torch.tensor([0] + [prefix] * len(branches))
    offsets = torch.cat([torch.arange(n) for n in lengths.tolist()])
    position = starts[owner] + offsets
    distance = position[:, None] - position[None, :]
    allowed = (distance >= 0) & ((owner[:, None] == owner[None, :]) | (owner[None, :] == 0))
    return allowed if window is None else allowed & (distance < window)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a packed row: `(1, heads, tokens, size)` to `(1, tokens, heads, size)`."""
    cap = options.get("softcap")
    if layout is None and cap is not None:  # `sdpa` would leave the cap out
        whole = tree_mask((query.shape[2], ())).to(query.device)
        mask = whole if attention_mask is None else attention_mask
        key, value = _every_head(key, query), _every_head(value, query)
        return every_score(query, key, value, mask, scaling, cap).transpose(1, 2), None
    if layout is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    window = _window(module, options)
    if dropout > 0:
        raise Unsupported("attention dropout")
    # Under autocast a rotary embedding may give float32 queries and keys to bfloat16 values.
    query, key = query.to(value.dtype), key.to(value.dtype)
    key, value = _every_head(key, query), _every_head(value, query)
    with torch.autocast(query.device.type, enabled=False):
        found = _by_tree(query, key, value, scaling, layout, window, cap)
    return found, None


def _by_tree(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    layout: Layout,
    window: int | None,
    cap: float | None,
) -> torch.Tensor:
    # On a CPU the fused kernel is slow in bfloat16: all scores at once of what is short, float32 of
    # what is long (benchmarks/attention.py).
    slow_half = query.device.type == "cpu" and query.dtype == torch.bfloat16
    pieces = []
    parts = (tensor.split(layout.tokens, dim=2) for tensor in (query, key, value))
    for tree, q, k, v in zip(layout.trees, *parts, strict=True):
        mask = layout.mask(tree, window)
        if cap is not None or (slow_half and q.shape[2] <= SHORT_HALF):
            pieces.append(every_score(q, k, v, mask, scaling, cap))
            continue
        if slow_half:
            q, k, v = q.float(), k.float(), v.float()
        (prefix, branches), size = tree, q.shape[2]
        whole = window is None or window >= layout.longest
        alone = prefix == 0 and len(branches) == 1
        for first, last in ((0, prefix), (prefix, size)) if size > SHORT else ((0, size),):
            if first == last:
                continue
            causal = whole and (last == prefix or alone)
            pieces.append(
                scaled_dot_product_attention(
                    q[:, :, first:last],
                    k[:, :, :last],
                    v[:, :, :last],
                    attn_mask=None if causal else mask[first:last, :last],
                    is_causal=causal,
                    scale=scaling,
                )
            )
    return torch.cat([piece.to(query.dtype).transpose(1, 2) for piece in pieces], dim=1)


def _window(module: nn.Module, options: dict[str, Any]) -> int | None:
    """The sliding window of a layer, from the call; one the call does not tell is refused."""
    if "sliding_window" in options:
        found: int | None = options["sliding_window"]
        return found or None
    configured = getattr(getattr(module, "config", None), "sliding_window", None)
    if configured:  # 0 and None: no window
        raise Unsupported("a sliding window that attention is not told of")
    return None


def _every_head(tensor: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Repeat key or value heads that several query heads share."""
    times = query.shape[1] // tensor.shape[1]
    return tensor if times == 1 else tensor.repeat_interleave(times, dim=1)


def every_score(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    cap: float | None,
) -> torch.Tensor:
    """Attention with all scores at once, softmax in float32; scores are soft-capped to
    (-cap, cap) where there is a cap (Gemma 2)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query * scale) @ key.transpose(2, 3)
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    weights = torch.softmax(
        scores.masked_fill(~mask, torch.finfo(scores.dtype).min), dim=-1, dtype=torch.float32
    )
    return weights.to(value.dtype) @ value


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
