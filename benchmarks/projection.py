"""The projection to the vocabulary and its gradient on this CPU, by the size of its pieces.

    .venv/bin/python benchmarks/projection.py [--threads 1]

Milliseconds forward and backward for 1,536 positions of width 256, the least of the rounds. The
first column has a chunk and a tile of 64 MiB, as on a GPU; the last is what is used on a CPU. Where
all logits fit one chunk they are kept, and there are no tiles.
"""

from __future__ import annotations

import argparse
import time

import torch

from betaflow.policy import head

POSITIONS, WIDTH, ROUNDS = 1536, 256, 5
VOCABULARIES = (4096, 32_000, 152_000)
MILLION = 2**20
PIECES = ((16, 16), (6, 6), (6, 2), (6, 1))  # chunk and tile, millions of logits


def milliseconds(vocabulary: int, chunk: int, tile: int) -> float:
    """The least time of a few rounds with these pieces."""
    head.CHUNK, head.TILE = chunk * MILLION, tile * MILLION
    torch.manual_seed(0)
    hidden = torch.randn(POSITIONS, WIDTH, requires_grad=True)
    weight = (0.02 * torch.randn(vocabulary, WIDTH)).requires_grad_()
    targets = torch.randint(0, vocabulary, (POSITIONS,))
    spent = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        loss = head.Head(weight, None, None).logps(hidden, targets).sum()
        torch.autograd.grad(loss, (hidden, weight))
        spent.append(time.perf_counter() - began)
    return 1e3 * min(spent)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    print("vocabulary" + "".join(f"{f'{chunk}, {tile}':>10}" for chunk, tile in PIECES))
    for vocabulary in VOCABULARIES:
        found = [milliseconds(vocabulary, *pieces) for pieces in PIECES]
        print(f"{vocabulary:10,}" + "".join(f"{each:10.0f}" for each in found))


if __name__ == "__main__":
    main()
