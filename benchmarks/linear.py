"""Float32 linear layers on this CPU: torch's own (MKL on x86) against oneDNN's, in GFLOP/s.

    .venv/bin/python benchmarks/linear.py [--threads 1]

Each shape is timed forward and backward, both ways by turns in one run, and the best of five
rounds is taken, so that what else the machine does matters little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

import betaflow.policy.linear as ours

SHAPES = ((1664, 128, 384), (2000, 256, 256), (2000, 256, 688), (800, 256, 4096), (64, 128, 384))
FLOPS = 4e9  # of a round


def rate(function: Callable[..., torch.Tensor], tokens: int, width: int, out: int) -> float:
    """GFLOP/s of one round, forward and backward."""
    x = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(out, width, requires_grad=True)
    gradient = torch.randn(tokens, out)
    each = 3 * 2 * tokens * width * out
    times = max(3, int(FLOPS / each))
    function(x, weight, None).backward(gradient)
    began = time.perf_counter()
    for _ in range(times):
        function(x, weight, None).backward(gradient)
    return times * each / (time.perf_counter() - began) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    ours.ONEDNN = ours.BOTH  # whichever this processor gets
    print("tokens x in x out     torch   oneDNN   ratio")
    for shape in SHAPES:
        best = [0.0, 0.0]
        for _ in range(5):
            for way, function in enumerate((nn.functional.linear, ours.linear)):
                best[way] = max(best[way], rate(function, *shape))
        sizes = " x ".join(map(str, shape))
        print(f"{sizes:18} {best[0]:8.0f} {best[1]:8.0f} {best[1] / best[0]:7.2f}")


if __name__ == "__main__":
    main()
