"""Preference data of a rule: completions with one token are good, those with another bad."""

from __future__ import annotations

import torch

from betaflow.data.tokenise import Encoded


def sequences(count: int, good: bool) -> list[Encoded]:
    """Completions that hold token 40 (good) or 41 (bad) among noise of many lengths."""
    generator = torch.Generator().manual_seed(count + good)
    found = []
    for n in range(count):
        noise = torch.randint(50, 90, (n % 7,), generator=generator).tolist()
        found.append(Encoded([1, 30 + n % 5], [*noise, 40 if good else 41, 2]))
    return found
