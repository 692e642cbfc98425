"""Online DPO (Guo et al. 2024): DPO's loss on pairs that the policy draws anew at every step.

Each step draws completions of some prompts at T = 1, labels all pairs of a prompt's completions by
Bradley-Terry under a reward, and takes one step of DPO's loss on them, each completion computed
once. A label is drawn, or the loss is its mean over both labels. Reference, loss and metrics are
those of `training.dpo`; what is new is where pairs come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from betaflow.data.pairs import bradley_terry_label
from betaflow.data.tokenise import Encoded
from betaflow.errors import UserError
from betaflow.objectives.bradley_terry import preference_probability
from betaflow.policy.flops import forward_flops
from betaflow.policy.scorer import Scorer, all_sequence_logps
from betaflow.sampling.engine import Completion, Engine, Request
from betaflow.training import loop
from betaflow.training.dpo import Objective, ReferencedPairs, final_figures, pairs_step
from betaflow.training.optim import make_optimizer
from betaflow.training.trees import units

if TYPE_CHECKING:
    from betaflow.config import DPOTraining, OnlineSettings

# The reward of a prompt's completion, by the prompt's place among the prompts.
Reward = Callable[[int, Completion], float]


def train_online_dpo(
    scorer: Scorer,
    reference: Scorer,
    engine: Engine,
    reward: Reward,
    prompts: list[list[int]],
    held_out: ReferencedPairs,
    settings: DPOTraining,
    online: OnlineSettings,
    *,
    label: str,
    objective: Objective,
    peak_rate: float,
    seed: int,
    precision: str,
    fingerprint: str,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    probe: Callable[[int], dict[str, float]] | None = None,
) -> tuple[loop.Trained, dict[str, float]]:
    """Train the scorer's policy in place; return the steps' metrics and held-out figures.

    A row has what a row of `train_dpo` has, of the step's own pairs, and `reward/score`, the mean
    reward of its completions; `log_ratio`, their mean log pi / pi_ref (an estimate of the KL, nats
    a completion of the pairs); `completion_tokens`; `sampled_tokens`; and `flops` (drawing and the
    reference a forward pass each, the step three). `tokens`: every completion's with its prompt.

    Args:
        engine: draws from the scorer's policy.
        reward: by which pairs are labelled, in the unit of beta x log-ratio.
        prompts: token ids; each step takes `online.prompts` of them, in an order by seed.
        held_out: pairs of the reference's completions, for the figures at the end.

    Raises:
        UserError: as `train_dpo`.
    """
    optimizer = make_optimizer(settings, [p for p in scorer.parameters() if p.requires_grad])
    cost = forward_flops(scorer.policy), forward_flops(reference.policy)

    def update(step: int) -> dict[str, float]:
        places = loop.batch_indices(len(prompts), online.prompts, seed, step)
        scorer.eval()
        drawn = _draw(engine, [prompts[i] for i in places], online, seed, step)
        rewards = [[reward(i, one) for one in row] for i, row in zip(places, drawn, strict=True)]
        sequences = [
            [Encoded(prompts[i], one.token_ids) for one in row]
            for i, row in zip(places, drawn, strict=True)
        ]
        flat = [one for row in sequences for one in row]
        theirs = all_sequence_logps(
            reference, flat, budget=settings.micro_batch_tokens, precision=precision
        )
        rng = Random(f"{seed}/{step}") if online.labels == "drawn" else None
        pairs = labelled(sequences, rewards, theirs, rng, f"{step}")
        if not pairs.ids:
            raise UserError(
                f"{label}: at step {step} all completions of every prompt are equal: the policy "
                "draws no pair to learn from; raise beta or lower the learning rate"
            )
        trees = [pairs.tree(unit) for unit in units(pairs.chosen, "prompts")]
        row = pairs_step(
            scorer, pairs, trees, settings, objective, optimizer, step, online.steps, peak_rate,
            precision,
        )  # fmt: skip
        tokens = sum(one.length for one in flat)
        both = torch.cat([pairs.reference_chosen, pairs.reference_rejected])
        row |= {
            "reward/score": float(torch.tensor(rewards).mean()),
            "log_ratio": (row["logps/chosen"] + row["logps/rejected"]) / 2 - float(both.mean()),
            "completion_tokens": sum(len(one.completion) for one in flat) / len(flat),
            "sampled_tokens": sum(len(one.completion) for one in flat),
            "tokens": tokens,
            "flops": tokens * (cost[0] * 4 + cost[1]),
        }
        return row | (probe(step + 1) if probe else {})

    trained = loop.fit(
        label,
        online.steps,
        update,
        modules={"policy": scorer.policy},
        optimizer=optimizer,
        fingerprint=fingerprint,
        checkpoint_seconds=settings.checkpoint_seconds,
        show=("loss", "reward/score", "log_ratio"),
        on_step=on_step,
        keep=settings.keep_checkpoints,
    )
    return trained, final_figures(scorer, held_out, settings, objective, precision, label)


def _draw(
    engine: Engine, prompts: list[list[int]], online: OnlineSettings, seed: int, step: int
) -> list[list[Completion]]:
    """`online.draws` completions of each prompt at T = 1."""
    first = (seed * 1_000_003 + step + 1) * 1_000_003
    requests = [
        Request(ids, 1.0, first + place * online.draws + draw, online.max_new_tokens)
        for place, ids in enumerate(prompts)
        for draw in range(online.draws)
    ]
    found = engine.generate(requests)
    return [found[i : i + online.draws] for i in range(0, len(found), online.draws)]


def labelled(
    sequences: Sequence[Sequence[Encoded]],
    rewards: Sequence[Sequence[float]],
    reference: torch.Tensor,
    rng: Random | None,
    name: str,
) -> ReferencedPairs:
    """All pairs of each prompt's completions, but for those that are equal.

    Args:
        sequences, rewards: `(prompts, draws)`.
        reference: log pi_ref of each sequence, row after row, nats `(prompts x draws,)`.
        rng: draws the labels; None: the completion of the higher reward is the chosen one, with
            the chance that it is preferred.
        name: that the pairs' ids begin with.
    """
    ids, chosen, rejected, places = [], [], [], []
    first = 0
    for prompt, (row, scores) in enumerate(zip(sequences, rewards, strict=True)):
        for one, other in combinations(range(len(row)), 2):
            if row[one].completion == row[other].completion:
                continue
            if rng is not None:
                won, lost = bradley_terry_label(scores, one, other, rng)
            else:
                won, lost = (one, other) if scores[one] >= scores[other] else (other, one)
            ids.append(f"{name}/{prompt}/{one}-{other}")
            chosen.append(row[won])
            rejected.append(row[lost])
            places.append((first + won, first + lost))
        first += len(row)
    better, worse = torch.tensor(places, dtype=torch.long).view(-1, 2).unbind(1)
    chances = None
    if rng is None:
        every = torch.tensor([score for scores in rewards for score in scores], dtype=torch.float64)
        chances = preference_probability(every[better], every[worse]).float()
    return ReferencedPairs(ids, chosen, rejected, reference[better], reference[worse], chances)
