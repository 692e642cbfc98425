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
from torch import nn

from betaflow.data.pairs import bradley_terry_label
from betaflow.data.tokenise import Encoded
from betaflow.errors import UserError
from betaflow.objectives.bradley_terry import preference_probability
from betaflow.policy.flops import forward_flops
from betaflow.policy.packing import all_sequences
from betaflow.policy.scorer import Scorer
from betaflow.sampling.engine import Completion, Engine, Request
from betaflow.training import loop
from betaflow.training.dpo import Objective, ReferencedPairs, final_figures, pairs_step
from betaflow.training.optim import learning_rate, make_optimizer, optimizer_step
from betaflow.training.start import ROUNDED_KL, START_KL, require_same
from betaflow.training.trees import units
from betaflow.training.value_head import new_head, value_loss

if TYPE_CHECKING:
    from betaflow.config import DPOTraining, OnlineSettings

# The reward of a prompt's completion, by the prompt's place among the prompts.
Reward = Callable[[int, Completion], float]
Rows = list[list[Encoded]]  # the completions of each prompt


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
    a completion of the pairs); `completion_tokens`; `sampled_tokens`; and `flops`: drawing and the
    reference a forward pass each, the step three. `tokens`: every completion's with its prompt.

    In the first `online.value_steps` steps the policy stays near the reference, and its hidden
    states learn to tell the reward (see `value_head`): rows have what `value_loss` returns, and
    nothing of pairs.

    Args:
        engine: draws from the scorer's policy.
        reward: by which pairs are labelled, in the unit of beta x log-ratio.
        prompts: token ids; each step takes `online.prompts` of them, in an order by seed.
        held_out: pairs of the reference's completions, for the figures at the end.

    Raises:
        UserError: as `train_dpo`.
    """
    groups = [{"params": [p for p in scorer.parameters() if p.requires_grad]}]
    modules: dict[str, nn.Module] = {"policy": scorer.policy}
    head = new_head(scorer) if online.value_steps else None
    if head is not None:
        groups.append({"params": list(head.parameters())})
        modules["value"] = head
    optimizer = make_optimizer(settings, groups)
    cost = forward_flops(scorer.policy), forward_flops(reference.policy)

    def update(step: int) -> dict[str, float]:
        if step == online.value_steps:
            optimizer.state.clear()  # the value loss's gradients were of another size
        places = loop.batch_indices(len(prompts), online.prompts, seed, step)
        scorer.eval()
        drawn = _draw(engine, [prompts[i] for i in places], online, seed, step)
        rewards = [[reward(i, one) for one in row] for i, row in zip(places, drawn, strict=True)]
        sequences = [
            [Encoded(prompts[i], one.token_ids) for one in row]
            for i, row in zip(places, drawn, strict=True)
        ]
        learn = from_values if step < online.value_steps else from_pairs
        row = learn(step, sequences, rewards)
        flat = [one for row in sequences for one in row]
        tokens = sum(one.length for one in flat)
        shared = sum(map(scorer.computed, sequences))
        row |= {
            "reward/score": float(torch.tensor(rewards).mean()),
            "completion_tokens": sum(len(one.completion) for one in flat) / len(flat),
            "sampled_tokens": sum(len(one.completion) for one in flat),
            "tokens": tokens,
            "flops": tokens * cost[0] + shared * (3 * cost[0] + cost[1]),
        }
        return row | (probe(step + 1) if probe else {})

    def from_values(step: int, sequences: Rows, rewards: list[list[float]]) -> dict[str, float]:
        assert head is not None
        scorer.train()
        row = value_loss(
            scorer, reference, head, sequences, rewards,
            budget=settings.micro_batch_tokens, precision=precision,
        )  # fmt: skip
        if step == 0:
            # With dpo.training.compile the policy has kernels of its own.
            limit = START_KL if precision == "float32" else ROUNDED_KL
            require_same(row["value/kl"], limit)
        rate = learning_rate(settings, online.value_rate, step, online.value_steps)
        norm = optimizer_step(optimizer, rate, settings.max_grad_norm)
        return row | {"grad_norm": norm, "learning_rate": rate}

    def from_pairs(step: int, sequences: Rows, rewards: list[list[float]]) -> dict[str, float]:
        theirs = all_sequences(
            reference,
            [one for row in sequences for one in row],
            budget=settings.micro_batch_tokens,
            precision=precision,
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
        both = torch.cat([pairs.reference_chosen, pairs.reference_rejected])
        ratio = (row["logps/chosen"] + row["logps/rejected"]) / 2 - float(both.mean())
        return row | {"log_ratio": ratio}

    trained = loop.fit(
        label,
        online.steps,
        update,
        modules=modules,
        optimizer=optimizer,
        fingerprint=fingerprint,
        checkpoint_seconds=settings.checkpoint_seconds,
        show=("loss", "value/loss", "reward/score", "log_ratio"),
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
