"""Attention of one tree on this CPU, forward and backward: which way is fastest at which length.

    .venv/bin/python benchmarks/attention.py [--threads 1]

`two` and `one` are calls of the fused kernel (prefix and branches apart, or the whole tree under a
mask), `all` computes every score at once. Milliseconds, the median of 20 rounds.
`betaflow.policy.attention` takes `one` up to SHORT tokens, `two` above; in bfloat16 `all` up to
SHORT_HALF tokens and `two` in float32 above.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention as fused

from betaflow.policy.attention import every_score, tree_mask

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# Tokens of the prompt and of each completion; heads; size of a head.
TREES = ((10, 22, 4, 32), (60, 20, 4, 64), (128, 45, 4, 64), (300, 60, 4, 64), (600, 200, 14, 64))


def ways(prompt: int, completion: int) -> dict[str, Attention]:
    mask = tree_mask((prompt, (completion, completion)))

    def two(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        first = fused(q[:, :, :prompt], k[:, :, :prompt], v[:, :, :prompt], is_causal=True)
        rest = fused(q[:, :, prompt:], k, v, attn_mask=mask[prompt:])
        return torch.cat([first, rest], dim=2)

    def one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return fused(q, k, v, attn_mask=mask)

    def everything(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return every_score(q, k, v, mask, None, None)

    return {"two": two, "one": one, "all": everything}


def milliseconds(function: Attention, shape: tuple[int, ...], kind: torch.dtype) -> float:
    q, k, v = (torch.randn(shape, dtype=kind, requires_grad=True) for _ in range(3))
    gradient = torch.randn(shape, dtype=kind)
    found = []
    for _ in range(20):
        began = time.perf_counter()
        function(q, k, v).backward(gradient)
        found.append(1e3 * (time.perf_counter() - began))
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    names = [f"{name} {kind}" for kind in ("fp32", "bf16") for name in ("two", "one", "all")]
    print("prompt completion heads size" + "".join(f"{name:>10}" for name in names))
    for prompt, completion, heads, size in TREES:
        shape = (1, heads, prompt + 2 * completion, size)
        cells = [
            milliseconds(way, shape, kind)
            for kind in (torch.float32, torch.bfloat16)
            for way in ways(prompt, completion).values()
        ]
        print(
            f"{prompt:6} {completion:10} {heads:5} {size:4}" + "".join(f"{c:10.2f}" for c in cells)
        )


if __name__ == "__main__":
    main()
