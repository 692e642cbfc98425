"""Supervised fine-tuning on packed text: mean next-token cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from betaflow.data.packing import Block, pack
from betaflow.policy.loading import autocast, device
from betaflow.policy.packing import require_positions
from betaflow.training import loop
from betaflow.training.optim import learning_rate, make_optimizer, optimizer_step

if TYPE_CHECKING:
    from betaflow.config import SFTSettings


def packing_is_exact(model: PreTrainedModel, documents: list[list[int]], pad: int) -> bool:
    """Whether two documents in one block get the logits that each gets alone.

    Some families can't restart positions inside a sequence (state-space layers, absolute
    offsets); for those a block holds one document.
    """
    first, second = (d[:32] for d in documents[:2])
    block = _stack(pack([first, second], len(first) + len(second), pad))
    order = sorted((first, second), key=len, reverse=True)
    with torch.no_grad():
        packed = _logits(model, block)[0]
        for document, start in ((order[0], 0), (order[1], len(order[0]))):
            alone = model(torch.tensor([document], device=device()), use_cache=False).logits[0]
            if not torch.allclose(packed[start : start + len(document)], alone, atol=1e-3):
                return False
    return True


def train_sft(
    model: PreTrainedModel,
    documents: list[list[int]],
    held_out: list[list[int]],
    settings: SFTSettings,
    *,
    pad: int,
    precision: str,
    fingerprint: str,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[loop.Trained, dict[str, float]]:
    """Train in place; return the steps' metrics and held-out figures.

    Metrics of a step: `loss` (nats a token), `grad_norm`, `learning_rate`, `tokens`.

    Raises:
        UserError: a block is longer than the positions of the model.
    """
    require_positions(model.config, settings.block_tokens, "sft.block_tokens", what="a block")
    together = packing_is_exact(model, documents, pad)
    if not together:
        print("sft: this model can't be packed; a block holds one document", flush=True)
    blocks = pack(documents, settings.block_tokens, pad, together=together)
    steps = loop.total_steps(len(blocks), settings.batch_size, settings.epochs)
    optimizer = make_optimizer(settings, model.parameters())

    def update(step: int) -> dict[str, float]:
        indices = loop.batch_indices(len(blocks), settings.batch_size, settings.seed, step)
        tokens = sum(int((blocks[i].labels >= 0).sum()) for i in indices)
        total = 0.0
        for group in loop.micro_batches(indices, settings.micro_batch_size):
            with autocast(precision):
                loss = _summed_loss(model, _stack([blocks[i] for i in group])) / tokens
            loss.backward()
            total += loss.item()
        rate = learning_rate(settings, settings.learning_rate, step, steps)
        norm = optimizer_step(optimizer, rate, settings.max_grad_norm)
        return {"loss": total, "grad_norm": norm, "learning_rate": rate, "tokens": tokens}

    model.train()
    trained = loop.fit(
        "sft",
        steps,
        update,
        modules={"policy": model},
        optimizer=optimizer,
        fingerprint=fingerprint,
        checkpoint_seconds=settings.checkpoint_seconds,
        on_step=on_step,
    )
    model.eval()
    return trained, evaluate(
        model, held_out, settings, pad=pad, together=together, precision=precision
    )


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    documents: list[list[int]],
    settings: SFTSettings,
    *,
    pad: int,
    together: bool,
    precision: str,
) -> dict[str, float]:
    """Held-out cross-entropy, nats a token, and its perplexity."""
    blocks = pack(documents, settings.block_tokens, pad, together=together)
    total, tokens = 0.0, 0
    for start in range(0, len(blocks), settings.micro_batch_size):
        group = _stack(blocks[start : start + settings.micro_batch_size])
        with autocast(precision):
            total += _summed_loss(model, group).item()
        tokens += int((group.labels >= 0).sum())
    loss = total / max(tokens, 1)
    return {"eval/loss": loss, "eval/perplexity": float(torch.tensor(loss).exp())}


def _stack(blocks: list[Block]) -> Block:
    return Block(*(torch.stack(field).to(device()) for field in zip(*blocks, strict=True)))


def _logits(model: nn.Module, block: Block) -> torch.Tensor:
    output: torch.Tensor = model(
        input_ids=block.input_ids, position_ids=block.position_ids, use_cache=False
    ).logits
    return output


def _summed_loss(model: nn.Module, block: Block) -> torch.Tensor:
    chosen = block.labels[:, 1:] >= 0
    logits = _logits(model, block)[:, :-1][chosen].float()
    return cross_entropy(logits, block.labels[:, 1:][chosen], reduction="sum")
