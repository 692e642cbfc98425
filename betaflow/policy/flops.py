"""How much arithmetic a model takes, counted as in Kaplan et al. 2020 (section 2.1)."""

from __future__ import annotations

from typing import Any

from torch import nn


def forward_flops(model: Any) -> float:
    """FLOPs of a forward pass, a token: 2 for each weight of a matrix product.

    The embedding table is looked up, not multiplied by, unless it is also the projection to the
    vocabulary. Attention's own products, which grow with the context, are left out (2 of every
    1 + width / context parts; Kaplan et al. leave them out too). A backward pass takes twice as
    many.
    """
    embedding = model.get_input_embeddings().weight
    output = model.get_output_embeddings()
    tied = isinstance(output, nn.Linear) and output.weight is embedding
    count = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    return 2.0 * (count if tied else count - embedding.numel())
