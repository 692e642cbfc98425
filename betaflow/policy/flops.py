"""How much arithmetic a model takes, counted as in Kaplan et al. 2020 (section 2.1)."""

from __future__ import annotations

from typing import Any

from torch import nn


def forward_flops(model: Any) -> float:
    """FLOPs of a forward pass, a token: 2 for each weight of a matrix product.

    Tables of embeddings, of tokens and of positions, are looked up, not multiplied by, unless one
    is also the projection to the vocabulary. Attention's own products, which grow with the context,
    are left out (2 of every 1 + width / context parts; Kaplan et al. leave them out too). A
    backward pass takes twice as many.
    """
    output = model.get_output_embeddings()
    projection = output.weight if isinstance(output, nn.Linear) else None
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    looked_up -= {id(projection)}
    return 2.0 * sum(
        p.numel() for p in model.parameters() if p.dim() > 1 and id(p) not in looked_up
    )
