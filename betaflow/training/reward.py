"""The Bradley-Terry reward model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from betaflow.data.tokenise import Encoded
from betaflow.objectives.bradley_terry import bradley_terry_loss
from betaflow.policy.loading import autocast
from betaflow.policy.packing import all_sequences
from betaflow.policy.rewards import RewardScorer
from betaflow.training import loop
from betaflow.training.optim import learning_rate, make_optimizer, optimizer_step
from betaflow.training.trees import joined_sides, tree, units

if TYPE_CHECKING:
    from betaflow.config import RewardSettings

Pairs = tuple[list[Encoded], list[Encoded]]


def train_reward(
    model: nn.Module,
    pairs: Pairs,
    held_out: Pairs,
    settings: RewardSettings,
    *,
    pad: int,
    precision: str,
    fingerprint: str,
    label: str = "reward",
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[loop.Trained, dict[str, float], list[float]]:
    """Train in place on (chosen, rejected) sequences; return metrics, and how it does held out.

    That is figures under `eval/`, and each held-out pair's margin r_w - r_l.

    Metrics of a step: `loss`, `accuracy`, `margin` (means over pairs), `grad_norm`,
    `learning_rate`, `tokens`, `computed_tokens` (as DPO's); every `eval_every` steps the figures
    under `eval/` too.
    """
    chosen, rejected = pairs
    trees = [tree(unit, chosen, rejected) for unit in units(chosen, settings.batch_of)]
    scorer = RewardScorer(model, pad)
    scorer.explain()
    steps = loop.total_steps(len(trees), settings.batch_size, settings.epochs)
    optimizer = make_optimizer(settings, model.parameters())
    largest = settings.micro_batch_size * max(scorer.cost(one.sequences) for one in trees)

    def update(step: int) -> dict[str, float]:
        indices = loop.batch_indices(len(trees), settings.batch_size, settings.seed, step)
        count = sum(len(trees[i].pairs) for i in indices)
        # Within a step the order is free: like lengths together leave little padding.
        indices.sort(key=lambda i: (max(s.length for s in trees[i].sequences), i))
        total = accurate = margin = 0.0
        tokens = computed = 0
        for group in loop.micro_batches(indices, settings.micro_batch_size):
            part = [trees[i] for i in group]
            batch = scorer.batch([one.sequences for one in part])
            with autocast(precision):
                scores = scorer(batch)
            sides = torch.tensor(joined_sides(part), device=scores.device)
            first, second = scores[sides].view(-1, 2).unbind(1)
            loss = bradley_terry_loss(first, second).sum() / count
            loss.backward()
            total += loss.item()
            accurate += float((first > second).sum()) / count
            margin += float((first - second).detach().sum()) / count
            tokens += sum(s.length for one in part for s in one.sequences)
            computed += sum(scorer.computed(one.sequences) for one in part)
        rate = learning_rate(settings, settings.learning_rate, step, steps)
        norm = optimizer_step(optimizer, rate, settings.max_grad_norm)
        due = held_out[0] and settings.eval_every and (step + 1) % settings.eval_every == 0
        return {
            "loss": total,
            "accuracy": accurate,
            "margin": margin,
            "grad_norm": norm,
            "learning_rate": rate,
            "tokens": tokens,
            "computed_tokens": computed,
            **(_figures(held_out_margins()) if due else {}),
        }

    def held_out_margins() -> torch.Tensor:
        model.eval()
        scores = all_sequences(
            scorer, held_out[0] + held_out[1], budget=largest, precision=precision
        )
        model.train()
        first, second = scores.view(2, -1)
        return first - second

    model.train()
    trained = loop.fit(
        label,
        steps,
        update,
        modules={"reward": model},
        optimizer=optimizer,
        fingerprint=fingerprint,
        checkpoint_seconds=settings.checkpoint_seconds,
        show=("loss", "accuracy"),
        on_step=on_step,
        best_of="eval/loss" if settings.patience else None,
        patience=settings.patience,
    )
    margins = held_out_margins() if held_out[0] else torch.zeros(0)
    model.eval()
    return trained, _figures(margins), margins.tolist()


def _figures(margins: torch.Tensor) -> dict[str, float]:
    """What the held-out pairs' margins say of the model; nothing where there are none."""
    if not len(margins):
        return {}
    return {
        "eval/loss": float(bradley_terry_loss(margins, torch.zeros_like(margins)).mean()),
        "eval/accuracy": float((margins > 0).float().mean()),
        "eval/pairs": float(len(margins)),
    }
