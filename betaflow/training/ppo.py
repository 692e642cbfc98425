"""RLHF-PPO (Ziegler et al. 2019; Huang et al. 2024): rollout, score, update; top to bottom here.

Each iteration draws a completion for each prompt of its batch at T = 1, scores it with the
reward model at its end, takes beta (log pi - log pi_ref) off at every token, and improves the
policy by the clipped objective with generalised advantage estimates from a critic. The critic
starts from the reward model, the policy and the reference from SFT. Scores are normalised to
mean 0 and variance 1 under the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from betaflow.data.tokenise import Batch, Encoded, collate
from betaflow.objectives.ppo import (
    advantages,
    masked_mean,
    ppo_loss,
    token_rewards,
    whiten,
)
from betaflow.policy.loading import autocast, device
from betaflow.policy.logps import token_statistics
from betaflow.policy.rewards import all_sequence_scores, sequence_scores, token_values
from betaflow.sampling.engine import Request
from betaflow.sampling.hf_engine import HFEngine
from betaflow.training import loop
from betaflow.training.optim import learning_rate, make_optimizer, optimizer_step

if TYPE_CHECKING:
    from betaflow.config import PPOTraining


SCALE_EPISODES = 256


class Models(NamedTuple):
    """The four models; `policy` and `critic` are trained."""

    policy: nn.Module
    reference: nn.Module
    critic: nn.Module
    reward: nn.Module


class ScoreScale(NamedTuple):
    """The reward model's mean and standard deviation under the reference."""

    mean: float
    std: float


class Rollout(NamedTuple):
    """Episodes and what is known of them; `(episodes, tokens - 1)` unless said."""

    batch: Batch
    mask: torch.Tensor
    logps: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


def train_ppo(
    models: Models,
    tokenizer: Any,
    prompts: list[list[int]],
    settings: PPOTraining,
    *,
    label: str,
    beta: float,
    peak_rate: float,
    seed: int,
    scale: ScoreScale,
    precision: str,
    fingerprint: str,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> loop.Trained:
    """Train policy and critic in place; return a metrics row for each iteration.

    `reward/score` is the normalised score, `reward/kl` the mean summed log-ratio (nats a
    sequence), `objective` = score - beta kl; `ratio_start` is the mean probability ratio in the
    first pass (1 unless something is wrong); `explained_variance` is the critic's.
    """
    pad = tokenizer.pad_token_id
    engine = HFEngine(models.policy, tokenizer, batch_size=settings.batch_size)
    # Two groups: each is clipped by its own norm, so that neither drowns the other.
    groups = [{"params": list(model.parameters())} for model in (models.policy, models.critic)]
    optimizer = make_optimizer(settings, groups, eps=1e-5)

    def update(step: int) -> dict[str, float]:
        indices = loop.batch_indices(len(prompts), settings.batch_size, seed, step)
        episodes, finished = _draw(engine, [prompts[i] for i in indices], settings, seed, step)
        with torch.no_grad(), autocast(precision):
            rollout, figures = _rollout(models, episodes, finished, settings, pad, beta, scale)
        rate = learning_rate(settings, peak_rate, step, settings.iterations)
        warming = step < settings.critic_warmup
        figures |= _improve(models, rollout, settings, optimizer, rate, warming, scale, precision)
        tokens = int(rollout.batch.attention_mask.sum()) * (settings.epochs + 1)
        return {**figures, "learning_rate": rate, "tokens": tokens}

    models.policy.train()
    models.critic.train()
    trained = loop.fit(
        label,
        settings.iterations,
        update,
        modules={"policy": models.policy, "critic": models.critic},
        optimizer=optimizer,
        fingerprint=fingerprint,
        checkpoint_seconds=settings.checkpoint_seconds,
        show=("reward/score", "reward/kl"),
        on_step=on_step,
    )
    models.policy.eval()
    return trained


def reference_scale(
    models: Models,
    tokenizer: Any,
    prompts: list[list[int]],
    settings: PPOTraining,
    *,
    seed: int,
    precision: str,
) -> ScoreScale:
    """Mean and standard deviation of the scores of pi_ref's own completions (Ziegler et al.)."""
    engine = HFEngine(models.reference, tokenizer, batch_size=settings.batch_size)
    asked = [prompts[i] for i in loop.shuffled(len(prompts), seed, 0)[:SCALE_EPISODES]]
    episodes, _ = _draw(engine, asked, settings, seed, -1)
    scores = all_sequence_scores(
        models.reward,
        episodes,
        pad=tokenizer.pad_token_id,
        batch_size=settings.micro_batch_size,
        precision=precision,
    )
    return ScoreScale(float(scores.mean()), max(float(scores.std()), 1e-6))


def _draw(
    engine: HFEngine, prompts: list[list[int]], settings: PPOTraining, seed: int, step: int
) -> tuple[list[Encoded], torch.Tensor]:
    """Episodes at T = 1, longest first (so that micro-batches hold little padding)."""
    first = (seed * 1_000_003 + step + 1) * settings.batch_size
    requests = [
        Request(ids, 1.0, first + n, settings.max_new_tokens) for n, ids in enumerate(prompts)
    ]
    drawn = zip(prompts, engine.generate(requests), strict=True)
    ordered = sorted(drawn, key=lambda pair: -len(pair[0]) - len(pair[1].token_ids))
    episodes = [Encoded(ids, completion.token_ids) for ids, completion in ordered]
    ended = [completion.finish_reason == "stop" for _, completion in ordered]
    return episodes, torch.tensor(ended, device=device())


def _rollout(
    models: Models,
    episodes: list[Encoded],
    finished: torch.Tensor,
    settings: PPOTraining,
    pad: int,
    beta: float,
    scale: ScoreScale,
) -> tuple[Rollout, dict[str, float]]:
    """Score the episodes; log-probabilities are the trainer's own, not the sampler's."""
    batch = collate(episodes, pad).to(device())
    mask = batch.completion_mask[:, 1:]
    parts = _parts(batch, settings.micro_batch_size)
    ours = [token_statistics(models.policy, part) for part in parts]
    logps = torch.cat([part.logps for part in ours])
    entropy = torch.cat([part.entropy for part in ours])
    theirs = torch.cat([token_statistics(models.reference, part).logps for part in parts])
    raw = torch.cat([sequence_scores(models.reward, part) for part in parts])
    values = torch.cat([_critic(models.critic, part, scale) for part in parts])
    scores = (raw - scale.mean) / scale.std - settings.missing_eos_penalty * (~finished).float()
    rewards = token_rewards(scores, logps, theirs, mask, beta=beta)
    gains, returns = advantages(rewards, values, mask, gamma=settings.gamma, lam=settings.lam)
    kl = ((logps - theirs) * mask).sum(-1)
    residual = masked_mean((returns - values) ** 2, mask)
    spread = masked_mean((returns - masked_mean(returns, mask)) ** 2, mask)
    figures = {
        "reward/score": scores.mean(),
        "reward/kl": kl.mean(),
        "objective": (scores - beta * kl).mean(),
        "entropy": masked_mean(entropy, mask),
        "explained_variance": 1 - residual / spread.clamp_min(1e-8),
        "completion_tokens": mask.sum(-1).float().mean(),
        "finished": finished.float().mean(),
    }
    rollout = Rollout(batch, mask, logps, values, whiten(gains, mask), returns)
    return rollout, {key: float(value) for key, value in figures.items()}


def _improve(
    models: Models,
    rollout: Rollout,
    settings: PPOTraining,
    optimizer: torch.optim.Optimizer,
    rate: float,
    warming: bool,
    scale: ScoreScale,
    precision: str,
) -> dict[str, float]:
    """Take `epochs` optimizer steps, a pass over the rollout each; in warm-up the critic alone."""
    total = rollout.mask.sum()
    sums: dict[str, float] = {}
    ratio_start = 1.0
    for epoch in range(settings.epochs):
        for part in _split(rollout, settings.micro_batch_size):
            share = part.mask.sum() / total
            with autocast(precision):
                with torch.set_grad_enabled(not warming):
                    now = token_statistics(models.policy, part.batch)
                values = _critic(models.critic, part.batch, scale)
            loss = ppo_loss(
                now.logps,
                part.logps,
                part.advantages,
                values,
                part.values,
                part.returns,
                part.mask,
                clip=settings.clip,
                value_clip=settings.value_clip,
            )
            value = settings.value_coefficient * loss.value
            (share * (value if warming else loss.policy + value)).backward()
            for key, figure in loss._asdict().items():
                sums[key] = sums.get(key, 0.0) + float(figure.detach() * share) / settings.epochs
            if epoch == 0:
                ratio = torch.exp((now.logps - part.logps).detach() * part.mask)
                ratio_start += float((masked_mean(ratio, part.mask) - 1) * share)
        norm = optimizer_step(optimizer, rate, settings.max_grad_norm)
    return {
        "policy_loss": sums["policy"],
        "value_loss": sums["value"],
        "clip_fraction": sums["clip_fraction"],
        "approx_kl": sums["approx_kl"],
        "ratio_start": ratio_start,
        "grad_norm": norm,
    }


def _critic(critic: nn.Module, batch: Batch, scale: ScoreScale) -> torch.Tensor:
    """Expected normalised return before each completion token, zero elsewhere."""
    raw = token_values(critic, batch)[:, :-1]
    return (raw - scale.mean) / scale.std * batch.completion_mask[:, 1:]


def _parts(batch: Batch, size: int) -> list[Batch]:
    return [
        Batch(*fields) for fields in zip(*(tensor.split(size) for tensor in batch), strict=True)
    ]


def _split(rollout: Rollout, size: int) -> list[Rollout]:
    """Micro-batches, each cut to its own longest episode."""
    found = []
    rest = zip(*(tensor.split(size) for tensor in rollout[1:]), strict=True)
    for batch, fields in zip(_parts(rollout.batch, size), rest, strict=True):
        longest = int(batch.attention_mask.sum(-1).max())
        cut = Batch(*(tensor[:, :longest] for tensor in batch))
        found.append(Rollout(cut, *(tensor[:, : longest - 1] for tensor in fields)))
    return found
