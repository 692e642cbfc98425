"""RLHF-PPO (Ziegler et al. 2019; Huang et al. 2024): rollout, score, improve; top to bottom here.

Each iteration draws a completion for each prompt of its batch at T = 1, scores it at its end,
takes coefficient x (log pi - log pi_ref) off at every token, and improves the policy by the
clipped objective with generalised advantage estimates from a critic. Policy and reference start
from SFT, the critic from the reward model. Scores are normalised to mean 0 and variance 1 under
the reference. The coefficient is fixed, or adapted to a target KL.

While the critic alone learns, the policy's hidden states can be taught to tell the score, with the
policy held to the reference: the auxiliary phase of Cobbe et al. 2021, here before the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from betaflow.data.tokenise import Batch, Encoded, collate
from betaflow.errors import UserError
from betaflow.objectives.ppo import (
    adapted_coefficient,
    advantages,
    masked_mean,
    ppo_loss,
    token_rewards,
    whiten,
)
from betaflow.policy.flops import forward_flops
from betaflow.policy.lanes import side_by_side
from betaflow.policy.loading import autocast, device
from betaflow.policy.logps import token_logps, token_statistics
from betaflow.policy.packing import require_positions
from betaflow.policy.rewards import token_values
from betaflow.policy.scorer import Scorer
from betaflow.sampling.engine import Engine, Request
from betaflow.training import loop
from betaflow.training.optim import learning_rate, make_optimizer, optimizer_step
from betaflow.training.start import ROUNDED_KL, START_KL, require_same
from betaflow.training.value_head import new_head, value_loss

if TYPE_CHECKING:
    from betaflow.config import PPOTraining


SCALE_EPISODES = 256

Score = Callable[[list[Encoded]], torch.Tensor]
Rows = Sequence[dict[str, Any]]
Gradients = list[torch.Tensor | None]  # a parameter each; None: it played no part


class Models(NamedTuple):
    """The models beside the reward; `policy` and `critic` are trained."""

    policy: nn.Module
    reference: nn.Module
    critic: nn.Module


class Scale(NamedTuple):
    """Mean and standard deviation of a score under the reference."""

    mean: float
    std: float

    def normalise(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores in standard deviations from the reference's mean."""
        return (scores - self.mean) / self.std


class Reward(NamedTuple):
    """What is maximised: `score` of whole episodes, `(episodes,)`, and its scale.

    `forward_flops` are a token's, of the model that scores; 0 where none does.
    """

    score: Score
    scale: Scale
    forward_flops: float = 0.0


class Rollout(NamedTuple):
    """Episodes and what is known of them; `(episodes, tokens - 1)` unless said."""

    batch: Batch
    mask: torch.Tensor
    logps: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


class Forward(NamedTuple):
    """What a micro-batch's loss is differentiated by, `(episodes, tokens - 1)`."""

    logps: torch.Tensor
    values: torch.Tensor


# Adds the gradient of some episodes' value loss to the policy's; returns its figures.
Teach = Callable[[torch.Tensor], dict[str, float]]


def train_ppo(
    models: Models,
    reward: Reward,
    critic_scale: Scale,
    engine: Engine,
    prompts: list[list[int]],
    settings: PPOTraining,
    *,
    pad: int,
    label: str,
    beta: float,
    target_kl: float,
    peak_rate: float,
    seed: int,
    precision: str,
    fingerprint: str,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    hand_over: Callable[[list[Encoded]], None] | None = None,
    probe: Callable[[int], dict[str, float]] | None = None,
) -> tuple[loop.Trained, dict[str, float]]:
    """Train policy and critic in place; return a metrics row for each iteration, and times.

    docs/metrics.md explains the rows. The times are mean seconds an iteration of each phase
    (`sync`, `rollout`, `scoring`, `update`) in this process; no result depends on them.

    Args:
        critic_scale: of the critic's raw output, which is the reward model's at the start.
        engine: draws the episodes; one of other weights than `models.policy` needs `hand_over`.
        prompts: token ids; each iteration takes `batch_size` of them, in an order by seed.
        beta: coefficient of the KL in the reward; with a target, where it starts.
        target_kl: nats a completion that the coefficient is adapted to; 0: it stays.
        hand_over: gives the engine the policy's weights, before each rollout; called with a few
            episodes of the last one (or prompts) to compare log-probabilities on.
        probe: called with the iterations done; what it returns joins the row.

    Raises:
        UserError: the policy is not the reference at the start; the model has not the positions of
            the longest episode; or a metric is not finite.
    """
    longest = max(map(len, prompts)) + settings.max_new_tokens
    require_positions(
        models.policy.config, longest, "pairs.max_prompt_tokens or ppo.training.max_new_tokens"
    )
    # Groups, each clipped by its own norm, so that none drowns the others.
    groups = [{"params": list(model.parameters())} for model in (models.policy, models.critic)]
    modules: dict[str, nn.Module] = {"policy": models.policy, "critic": models.critic}
    teacher = None
    if settings.teach_states:
        teacher = _Teacher(models, settings, pad, precision)
        groups.append({"params": list(teacher.head.parameters())})
        modules["value"] = teacher.head
    optimizer = make_optimizer(settings, groups, eps=1e-5)
    rows: list[dict[str, Any]] = []
    clock = _Clock()
    known: list[Encoded] = []  # some of the last rollout

    def update(step: int) -> dict[str, float]:
        indices = loop.batch_indices(len(prompts), settings.batch_size, seed, step)
        asked = [prompts[i] for i in indices]
        coefficient = _coefficient(rows, settings, beta, target_kl)
        if hand_over is not None:
            with clock.phase("sync"):
                hand_over(known or [Encoded(ids[:1], ids[1:] or ids) for ids in asked[:8]])
        with clock.phase("rollout"):
            episodes, finished = _draw(engine, asked, settings, seed, step)
        known[:] = episodes[:8]
        warming = step < settings.critic_warmup
        with clock.phase("scoring"), torch.no_grad():
            rollout, scores, forwards, figures = _score(
                models, reward, critic_scale, episodes, finished, settings, pad, coefficient,
                warming, precision,
            )  # fmt: skip
        if step == 0:
            # The policy may be computed with gradients, the reference never is: by other kernels.
            rounded = settings.reuse_scoring and precision != "float32"
            require_same(figures["kl"], ROUNDED_KL if rounded else START_KL)
        rate = learning_rate(settings, peak_rate, step, settings.iterations)
        teach = partial(teacher, episodes, scores) if teacher and warming else None
        if teacher and step == settings.critic_warmup:
            for parameter in models.policy.parameters():  # taught by gradients of another size
                optimizer.state.pop(parameter, None)
        with clock.phase("update"):
            figures |= _improve(
                models, critic_scale, rollout, forwards, settings, optimizer, rate, warming, teach,
                seed * 1_000_003 + step, precision,
            )  # fmt: skip
        figures |= _cost(models, reward, rollout, settings, warming)
        row = {**figures, "kl_coefficient": coefficient, "learning_rate": rate}
        return row | (probe(step + 1) if probe else {})

    models.policy.train()
    models.critic.train()
    trained = loop.fit(
        label,
        settings.iterations,
        update,
        modules=modules,
        optimizer=optimizer,
        fingerprint=fingerprint,
        checkpoint_seconds=settings.checkpoint_seconds,
        show=("reward/score", "kl"),
        on_step=on_step,
        history=rows,
    )
    models.policy.eval()
    return trained, clock.means()


def reference_scale(
    score: Score,
    engine: Engine,
    prompts: list[list[int]],
    settings: PPOTraining,
    *,
    seed: int,
) -> Scale:
    """Mean and standard deviation of the scores of pi_ref's own completions (Ziegler et al.).

    Args:
        engine: of the reference.

    Raises:
        UserError: the scores are all the same.
    """
    asked = [prompts[i] for i in loop.batch_indices(len(prompts), SCALE_EPISODES, seed, 0)]
    episodes, _ = _draw(engine, asked, settings, seed, -1)
    scores = score(episodes)
    scale = Scale(float(scores.mean()), float(scores.std()))
    if not scale.std > 1e-6:
        raise UserError(
            f"{len(scores)} completions of the reference have one score, {scale.mean:.3g}: there "
            "is nothing that PPO could learn; look at the reward model"
        )
    return scale


def _coefficient(rows: Rows, settings: PPOTraining, beta: float, target_kl: float) -> float:
    """Of the KL in the reward of this iteration: a function of the rows so far.

    The rows of the warm-up, and the one after them, are of a policy that was not rewarded yet: its
    KL, 0 but where its states were taught, is of no coefficient's making.
    """
    if not target_kl or len(rows) <= settings.critic_warmup + 1:
        return beta
    last = rows[-1]
    return adapted_coefficient(
        last["kl_coefficient"],
        last["kl"],
        target=target_kl,
        episodes=settings.batch_size,
        horizon=settings.kl_horizon,
    )


def _draw(
    engine: Engine, prompts: list[list[int]], settings: PPOTraining, seed: int, step: int
) -> tuple[list[Encoded], torch.Tensor]:
    """Episodes at T = 1, longest first (so that micro-batches hold little padding)."""
    first = (seed * 1_000_003 + step + 1) * 1_000_003
    requests = [
        Request(ids, 1.0, first + n, settings.max_new_tokens) for n, ids in enumerate(prompts)
    ]
    drawn = zip(prompts, engine.generate(requests), strict=True)
    ordered = sorted(drawn, key=lambda pair: -len(pair[0]) - len(pair[1].token_ids))
    episodes = [Encoded(ids, completion.token_ids) for ids, completion in ordered]
    ended = [completion.finish_reason == "stop" for _, completion in ordered]
    return episodes, torch.tensor(ended, device=device())


def _score(
    models: Models,
    reward: Reward,
    critic_scale: Scale,
    episodes: list[Encoded],
    finished: torch.Tensor,
    settings: PPOTraining,
    pad: int,
    coefficient: float,
    warming: bool,
    precision: str,
) -> tuple[Rollout, torch.Tensor, list[Forward], dict[str, float]]:
    """Rewards, values and advantages; log-probabilities are the trainer's, not the sampler's.

    Also each episode's score, `(episodes,)`; with `reuse_scoring` the micro-batches' forward
    passes; and the figures of the metrics row.
    """
    batch = collate(episodes, pad).to(device())
    mask = batch.completion_mask[:, 1:]
    logps, theirs, entropy, kl, values = (torch.zeros(mask.shape, device=device()) for _ in "12345")

    keep = settings.reuse_scoring

    def fill(rows: torch.Tensor) -> Forward:
        part = _cut(batch, rows)
        width = part.input_ids.shape[1] - 1
        with autocast(precision):
            tokens = token_statistics(
                models.policy, models.reference, part, differentiable=keep and not warming
            )
            with torch.set_grad_enabled(keep):
                forward = Forward(tokens.logps, _values(models.critic, part, critic_scale))
        found = (*tokens, forward.values)
        for store, value in zip((logps, theirs, entropy, kl, values), found, strict=True):
            store[rows, :width] = value.detach()
        return forward

    split = torch.arange(len(episodes), device=device()).split(settings.micro_batch_size)
    forwards = side_by_side([partial(fill, rows) for rows in split])
    scores = reward.scale.normalise(reward.score(episodes).to(device()))
    scores = scores - settings.missing_eos_penalty * (~finished).float()
    rewards = token_rewards(scores, logps, theirs, mask, beta=coefficient)
    if settings.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    gains, returns = advantages(rewards, values, mask, gamma=settings.gamma, lam=settings.lam)
    residual = masked_mean((returns - values) ** 2, mask)
    spread = masked_mean((returns - masked_mean(returns, mask)) ** 2, mask)
    nats = kl.sum(-1).mean()
    figures = {
        "reward/score": scores.mean(),
        "reward/kl": (logps - theirs).sum(-1).mean(),
        "kl": nats,
        "objective": scores.mean() - coefficient * nats,
        "entropy": masked_mean(entropy, mask),
        "value": masked_mean(values, mask),
        "return": masked_mean(returns, mask),
        "explained_variance": 1 - residual / spread.clamp_min(1e-8),
        "completion_tokens": mask.sum(-1).float().mean(),
        "finished": finished.float().mean(),
    }
    rollout = Rollout(batch, mask, logps, values, whiten(gains, mask), returns)
    told = {key: float(value) for key, value in figures.items()}
    return rollout, scores, forwards if keep else [], told


class _Teacher:
    """Teaches the policy's states the score by a head of their own (see `value_head`)."""

    def __init__(self, models: Models, settings: PPOTraining, pad: int, precision: str) -> None:
        self.policy, self.reference = Scorer(models.policy, pad), Scorer(models.reference, pad)
        self.head = new_head(self.policy)
        self.size, self.precision = settings.micro_batch_size, precision

    def __call__(
        self, episodes: list[Encoded], scores: torch.Tensor, rows: torch.Tensor
    ) -> dict[str, float]:
        """Add the gradient of `rows` of the episodes to that of policy and head."""
        some = [episodes[i] for i in rows.tolist()]
        return value_loss(
            self.policy, self.reference, self.head, [[one] for one in some],
            [[score] for score in scores[rows].tolist()],
            budget=self.size * max(one.length for one in some), precision=self.precision,
        )  # fmt: skip


def _improve(
    models: Models,
    critic_scale: Scale,
    rollout: Rollout,
    forwards: list[Forward],
    settings: PPOTraining,
    optimizer: torch.optim.Optimizer,
    rate: float,
    warming: bool,
    teach: Teach | None,
    seed: int,
    precision: str,
) -> dict[str, float]:
    """Take `epochs` x `minibatches` optimizer steps; in warm-up the critic alone learns.

    A figure is the mean over all tokens of all passes; `ratio_start` and `clip_start` are the
    first mini-batch's, before any step: 1 and 0.

    Args:
        forwards: the first step's, where the scoring kept them; emptied, as they hold memory.
        teach: called with each mini-batch's episodes.
    """
    sums: dict[str, float] = {}
    start: dict[str, float] = {}
    weight = settings.epochs * float(rollout.mask.sum())
    norms: list[float] = []
    taught: list[dict[str, float]] = []
    learners = [models.critic] if warming else [models.policy, models.critic]
    learnt = [parameter for model in learners for parameter in model.parameters()]
    for rows in _minibatches(len(rollout.mask), settings, seed):
        tokens = float(rollout.mask[rows].sum())
        parts = list(_parts(rollout, rows, settings.micro_batch_size))
        known: Sequence[Forward | None] = list(forwards) or [None] * len(parts)
        work = list(zip(parts, known, strict=True))
        forwards.clear()
        # Two sums of gradients, always the same two, so that threads don't change the result.
        halves = [work[0::2], work[1::2]] if device().type == "cpu" else [work]
        jobs: list[Callable[[], Any]] = [
            partial(
                _gradients, models, critic_scale, half, tokens, learnt, settings, warming,
                precision,
            )
            for half in halves
        ]  # fmt: skip
        if teach is not None:
            jobs.append(partial(teach, rows))
        lanes = side_by_side(jobs)
        taught += lanes[len(halves) :]
        summed: Gradients = [None] * len(learnt)
        for found, figures in lanes[: len(halves)]:
            summed = _added(summed, found)
            for key, figure in figures.items():
                sums[key] = sums.get(key, 0.0) + figure / weight
                if not norms:
                    start[key] = start.get(key, 0.0) + figure / tokens
        for parameter, gradient in zip(learnt, summed, strict=True):
            parameter.grad = gradient
        norms.append(optimizer_step(optimizer, rate, settings.max_grad_norm))
    return {
        "policy_loss": sums["policy"],
        "value_loss": sums["value"],
        "clip_fraction": sums["clip_fraction"],
        "value_clip_fraction": sums["value_clip_fraction"],
        "approx_kl": sums["approx_kl"],
        "ratio_start": start["ratio"],
        "clip_start": start["clip_fraction"],
        "grad_norm": sum(norms) / len(norms),
        **{key: sum(one[key] for one in taught) / len(taught) for key in (taught or [{}])[0]},
    }


def _gradients(
    models: Models,
    critic_scale: Scale,
    work: list[tuple[Rollout, Forward | None]],
    tokens: float,
    learnt: list[nn.Parameter],
    settings: PPOTraining,
    warming: bool,
    precision: str,
) -> tuple[Gradients, dict[str, float]]:
    """Gradients of the loss of some micro-batches, their share of `tokens`; figures x tokens.

    A micro-batch whose forward pass there is does without another.
    """
    total: Gradients = [None] * len(learnt)
    figures: dict[str, float] = {}
    for part, forward in work:
        if forward is None:
            with autocast(precision):
                with torch.set_grad_enabled(not warming):
                    logps = token_logps(models.policy, part.batch)
                forward = Forward(logps, _values(models.critic, part.batch, critic_scale))
        loss = ppo_loss(
            forward.logps, part.logps, part.advantages, forward.values, part.values, part.returns,
            part.mask, clip=settings.clip, value_clip=settings.value_clip,
        )  # fmt: skip
        value = settings.value_coefficient * loss.value
        share = float(part.mask.sum())
        whole = share / tokens * (value if warming else loss.policy + value)
        total = _added(total, torch.autograd.grad(whole, learnt, allow_unused=True))
        for key, figure in loss._asdict().items():
            figures[key] = figures.get(key, 0.0) + float(figure.detach()) * share
    return total, figures


def _added(total: Gradients, found: Sequence[torch.Tensor | None]) -> Gradients:
    """The sums of gradients, in place where there are two."""
    return [
        more if sum_ is None else sum_ if more is None else sum_.add_(more)
        for sum_, more in zip(total, found, strict=True)
    ]


def _minibatches(count: int, settings: PPOTraining, seed: int) -> Iterator[torch.Tensor]:
    """Episodes of each optimizer step, longest first: a new split of the rollout each epoch."""
    for epoch in range(settings.epochs):
        generator = torch.Generator().manual_seed(seed * 1_009 + epoch)
        order = torch.randperm(count, generator=generator).to(device())
        for rows in order.tensor_split(settings.minibatches):
            yield rows.sort().values  # a rollout's episodes are in order of length


def _parts(rollout: Rollout, rows: torch.Tensor, size: int) -> Iterator[Rollout]:
    """Micro-batches, each cut to its own longest episode."""
    for some in rows.split(size):
        batch = _cut(rollout.batch, some)
        width = batch.input_ids.shape[1] - 1
        yield Rollout(batch, *(tensor[some, :width] for tensor in rollout[1:]))


def _cut(batch: Batch, rows: torch.Tensor) -> Batch:
    """Some of a batch's sequences, without the padding that all of them share."""
    longest = int(batch.attention_mask[rows].sum(-1).max())
    return Batch(*(tensor[rows, :longest] for tensor in batch))


def _values(critic: nn.Module, batch: Batch, scale: Scale) -> torch.Tensor:
    """Expected normalised return before each completion token, zero elsewhere."""
    raw = token_values(critic, batch)[:, :-1]
    return scale.normalise(raw) * batch.completion_mask[:, 1:]


def _cost(
    models: Models, reward: Reward, rollout: Rollout, settings: PPOTraining, warming: bool
) -> dict[str, float]:
    """Tokens and FLOPs of an iteration: a forward pass is 2 a parameter and token, a backward 4.

    The rollout is one forward pass (each token once, with a cache), the scoring one of each
    model, the update three (a forward and a backward) of policy and critic in each epoch, and with
    `reuse_scoring` one of each less. In warm-up the policy has a forward pass alone; where it is
    taught, three more, and the reference one.
    """
    policy, critic = forward_flops(models.policy), forward_flops(models.critic)
    tokens = float(rollout.batch.attention_mask.sum())
    reference = forward_flops(models.reference)
    scoring = policy + reference + critic + reward.forward_flops
    teaching = 3 * policy + reference if warming and settings.teach_states else 0
    update = settings.epochs * (policy * (1 if warming else 3) + teaching + critic * 3)
    if settings.reuse_scoring:
        update -= policy + critic
    return {
        "tokens": tokens * settings.epochs,
        "sampled_tokens": float(rollout.mask.sum()),
        "flops": tokens * (policy + scoring + update),
    }


class _Clock:
    """Seconds that each phase took."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - began)

    def means(self) -> dict[str, float]:
        return {name: sum(spent) / len(spent) for name, spent in self.seconds.items()}
