"""The DPO trainer: policy log-probabilities against the cached reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from betaflow.data.tokenise import Encoded
from betaflow.errors import UserError
from betaflow.objectives.dpo import DPOLoss, dpo_loss, gradient_weight
from betaflow.policy.loading import autocast
from betaflow.policy.scorer import Scorer
from betaflow.training import checkpoints, loop
from betaflow.training.distributed import every_rank, rank, world
from betaflow.training.optim import learning_rate, make_optimizer, optimizer_step
from betaflow.training.shares import share
from betaflow.training.trees import Tree, joined_sides, tree, units

if TYPE_CHECKING:
    from betaflow.config import DPOTraining

# The losses of pairs from six tensors, each `(pairs,)`: log pi and log pi_ref of the chosen and of
# the rejected completions (`dpo_loss`'s first four arguments), then both completions' lengths.
Objective = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], DPOLoss
]

METRICS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margin",
    "rewards/accuracy",
    "logps/chosen",
    "logps/rejected",
    "grad_weight",
    "nll/chosen",
)


class ReferencedPairs(NamedTuple):
    """Encoded pairs and their reference log-probabilities (nats), all `(pairs,)`.

    `chances`: that `chosen` is the preferred one, where the loss is the mean over both labels (with
    the sigmoid loss: cDPO, of each pair's own label smoothing); None: it is the preferred one.
    """

    ids: list[str]
    chosen: list[Encoded]
    rejected: list[Encoded]
    reference_chosen: torch.Tensor
    reference_rejected: torch.Tensor
    chances: torch.Tensor | None = None

    def tree(self, unit: Sequence[int]) -> Tree:
        """The sequences of pairs that share a prompt."""
        return tree(unit, self.chosen, self.rejected)


def dpo_objective(settings: DPOTraining, beta: float) -> Objective:
    """`dpo_loss` with the loss and the options that the settings name."""

    def objective(*pairs: torch.Tensor) -> DPOLoss:
        *logps, chosen_lengths, rejected_lengths = pairs
        return dpo_loss(
            *logps,
            beta=beta,
            loss=settings.loss,
            label_smoothing=settings.label_smoothing,
            length_normalised=settings.length_normalised,
            chosen_lengths=chosen_lengths,
            rejected_lengths=rejected_lengths,
            margin=settings.margin,
        )

    return objective


def train_dpo(
    scorer: Scorer,
    pairs: ReferencedPairs,
    held_out: ReferencedPairs,
    settings: DPOTraining,
    *,
    label: str,
    objective: Objective,
    peak_rate: float,
    seed: int,
    precision: str,
    fingerprint: str,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    show_samples: Callable[[int], None] | None = None,
    probe: Callable[[int], dict[str, float]] | None = None,
) -> tuple[loop.Trained, dict[str, float]]:
    """Train the scorer's policy in place; return the steps' metrics and held-out figures.

    Every metric is a mean over the step's pairs, whatever the micro-batches: `loss` (with the SFT
    term), `rewards/*` (implicit, in units of the reward), `logps/*` (nats a sequence),
    `grad_weight` = sigma(r_l - r_w), `nll/chosen` (nats a token); then `grad_norm` before
    clipping, `learning_rate`, `tokens` (both sequences of every pair, or every sequence of a
    prompt's pairs once, as `batch_of` says) and `computed_tokens` (packed: of those a prompt's
    once). Every `eval_every` steps the row holds the same of
    the held-out pairs, under `eval/`.

    Args:
        scorer: a `Scorer`, sharded over processes or not.
        objective: `dpo_objective(settings, beta)`, or another loss of the same log-probabilities.
        show_samples: called with the number of steps done every `sample_every` steps.
        probe: called with the number of steps done after each; what it returns joins the row.

    Raises:
        UserError: the first loss is not what it is where policy and reference are the same
            (ln 2 for DPO); or a loss or gradient is not finite.
    """
    together = units(pairs.chosen, settings.batch_of)
    steps = loop.total_steps(len(together), settings.batch_size, settings.epochs)
    trainable = [p for p in scorer.parameters() if p.requires_grad]
    optimizer = make_optimizer(settings, trainable)

    def trees_of(step: int) -> list[Tree]:
        batch = loop.batch_indices(len(together), settings.batch_size, seed, step)
        return [pairs.tree(together[i]) for i in batch]

    def update(step: int) -> dict[str, float]:
        row = pairs_step(
            scorer, pairs, trees_of(step), settings, objective, optimizer, step, steps, peak_rate,
            precision,
        )  # fmt: skip
        if settings.eval_every and (step + 1) % settings.eval_every == 0:
            row |= evaluate(scorer, held_out, settings, objective, precision)
        if show_samples and settings.sample_every and (step + 1) % settings.sample_every == 0:
            scorer.eval()
            show_samples(step + 1)
        return row | (probe(step + 1) if probe else {})

    trained = loop.fit(
        label,
        steps,
        update,
        modules={"policy": scorer.policy},
        optimizer=optimizer,
        fingerprint=fingerprint,
        checkpoint_seconds=settings.checkpoint_seconds,
        show=("loss", "rewards/accuracy", "rewards/margin"),
        on_step=on_step,
        keep=settings.keep_checkpoints,
        best_of="eval/loss" if settings.patience else None,
        patience=settings.patience,
        items=lambda step: [pairs.ids[i] for i in _pairs_of(trees_of(step))],
    )
    return trained, final_figures(scorer, held_out, settings, objective, precision, label)


def pairs_step(
    scorer: Scorer,
    pairs: ReferencedPairs,
    trees: Sequence[Tree],
    settings: DPOTraining,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    step: int,
    steps: int,
    peak_rate: float,
    precision: str,
) -> dict[str, float]:
    """Optimizer step `step` of `steps`, on the pairs of some trees; its metrics.

    Raises:
        UserError: at step 0, where policy and reference must be the same, they are not.
        NotFinite: a loss or a gradient is not.
    """
    scorer.train()
    indices = _pairs_of(trees)
    table = _pass(scorer, pairs, trees, settings, objective, precision, learn=True)
    _require_finite(table, pairs, indices)
    if step == 0:
        require_reference(table, pairs, indices, settings, objective, precision)
    rate = learning_rate(settings, peak_rate, step, steps)
    return {
        **_means(table, ""),
        "grad_norm": optimizer_step(optimizer, rate, settings.max_grad_norm),
        "learning_rate": rate,
        "tokens": sum(s.length for one in trees for s in one.sequences),
        "computed_tokens": sum(scorer.computed(one.sequences) for one in trees),
    }


def _pairs_of(trees: Sequence[Tree]) -> list[int]:
    return [i for one in trees for i in one.pairs]


def _pass(
    scorer: Scorer,
    pairs: ReferencedPairs,
    trees: Sequence[Tree],
    settings: DPOTraining,
    objective: Objective,
    precision: str,
    *,
    learn: bool,
) -> torch.Tensor:
    """Metrics of the trees' pairs, `(metrics, pairs)`, on the CPU; a process computes its share.

    With `learn` the gradient of the pairs' mean loss is added, summed over the processes.
    """
    found: list[torch.Tensor] = []
    order: list[int] = []
    total = sum(len(one.pairs) for one in trees)
    firsts = list(accumulate((len(one.pairs) for one in trees), initial=0))
    groups = [one.sequences for one in trees]
    for places, counts in share(scorer, groups, settings.micro_batch_tokens, rank(), world()):
        part = [trees[place] for place in places]
        with autocast(precision):
            logps = scorer(scorer.batch([one.sequences for one in part]))
        sides = torch.tensor(joined_sides(part), device=logps.device)
        values = pair_metrics(logps[sides], pairs, _pairs_of(part), settings, objective)
        if learn:
            (values[0].sum() * (1 / total if counts else 0.0)).backward()
        if counts:
            found.append(values.detach())
            order += [i for place in places for i in range(firsts[place], firsts[place + 1])]
    table = torch.zeros(len(METRICS), total)
    if found:
        table[:, order] = torch.cat(found, dim=1).cpu()  # the one wait for the device in a step
    return torch.stack(every_rank(table)).sum(0)


@torch.no_grad()
def evaluate(
    scorer: Scorer,
    pairs: ReferencedPairs,
    settings: DPOTraining,
    objective: Objective,
    precision: str,
) -> dict[str, float]:
    """Means over held-out pairs of the metrics of a step, under `eval/`."""
    trees = [pairs.tree(unit) for unit in units(pairs.chosen, settings.batch_of)]
    if not trees:
        return {}
    scorer.eval()
    table = _pass(scorer, pairs, trees, settings, objective, precision, learn=False)
    _require_finite(table, pairs, _pairs_of(trees), "eval/")
    return _means(table, "eval/")


def final_figures(
    scorer: Scorer,
    held_out: ReferencedPairs,
    settings: DPOTraining,
    objective: Objective,
    precision: str,
    label: str,
) -> dict[str, float]:
    """`evaluate` after the last step. Raises `UserError` where a loss is not finite."""
    try:
        return evaluate(scorer, held_out, settings, objective, precision)
    except loop.NotFinite as error:
        raise UserError(
            f"{label}: {error} on the held-out pairs {', '.join(error.items[:8])} after the last "
            f"step, with the weights of {checkpoints.newest(label)}; look at those pairs, or lower "
            "the learning rate"
        ) from None


def pair_metrics(
    logps: torch.Tensor,
    pairs: ReferencedPairs,
    members: list[int],
    settings: DPOTraining,
    objective: Objective,
) -> torch.Tensor:
    """`METRICS` of some pairs, `(metrics, pairs)`; only the loss carries a gradient.

    With `chances` the loss is the mean over both labels.

    Args:
        logps: summed log-probabilities, chosen and rejected by turns, `(2 x pairs,)`.
    """
    place = logps.device
    chosen, rejected = logps.view(-1, 2).unbind(1)
    lengths = [
        torch.tensor([len(side[i].completion) for i in members], device=place)
        for side in (pairs.chosen, pairs.rejected)
    ]
    reference = [
        side[members].to(place) for side in (pairs.reference_chosen, pairs.reference_rejected)
    ]
    found = objective(chosen, rejected, *reference, *lengths)
    nll = -chosen / lengths[0]
    loss = found.losses + settings.sft_weight * nll if settings.sft_weight else found.losses
    if pairs.chances is not None:
        turned = objective(rejected, chosen, *reference[::-1], *lengths[::-1]).losses
        if settings.sft_weight:
            turned = turned - settings.sft_weight * rejected / lengths[1]
        chances = pairs.chances[members].to(place)
        loss = chances * loss + (1 - chances) * turned
    margin = found.chosen_rewards - found.rejected_rewards
    weight = gradient_weight(found.chosen_rewards, found.rejected_rewards)
    rest = (
        found.chosen_rewards,
        found.rejected_rewards,
        margin,
        (margin > 0).float(),
        chosen.detach(),
        rejected.detach(),
        weight,
        nll.detach(),
    )
    return torch.stack([loss, *rest])


def _means(table: torch.Tensor, prefix: str) -> dict[str, float]:
    means = table.double().mean(1).tolist()
    return {prefix + name: mean for name, mean in zip(METRICS, means, strict=True)}


def _require_finite(
    table: torch.Tensor, pairs: ReferencedPairs, indices: list[int], prefix: str = ""
) -> None:
    finite = table[0].isfinite().tolist()
    wrong = [pairs.ids[i] for i, fine in zip(indices, finite, strict=True) if not fine]
    if wrong:
        raise loop.NotFinite([f"{prefix}loss"], wrong)


def require_reference(
    table: torch.Tensor,
    pairs: ReferencedPairs,
    indices: list[int],
    settings: DPOTraining,
    objective: Objective,
    precision: str,
) -> None:
    """Stop unless the untrained policy gives each completion the reference's log-probability.

    Stricter than looking at the loss (ln 2 for DPO), whose mean hides errors that cancel; the
    loss is looked at too.
    """
    reference = torch.stack([pairs.reference_chosen[indices], pairs.reference_rejected[indices]])
    first = METRICS.index("logps/chosen")
    gap = float(((table[first : first + 2] - reference).abs() / reference.abs().clamp_min(1)).max())
    expected = pair_metrics(reference.T.reshape(-1), pairs, indices, settings, objective)[0].mean()
    loss, strict = float(table[0].mean()), precision == "float32"
    target = "ln 2" if math.isclose(float(expected), math.log(2), abs_tol=1e-6) else f"{expected:g}"
    off = abs(loss - float(expected)) / max(1.0, abs(float(expected)))
    if not (gap <= (1e-3 if strict else 5e-2) and off <= (1e-3 if strict else 2e-2)):
        raise UserError(
            f"before training the policy's log-probabilities differ from the cached reference's by "
            f"up to {gap:.1e} (relative), and the first loss is {loss:.6f}, not {target}: the "
            "reference is not that of this model. Delete out/reference and run again."
        )
