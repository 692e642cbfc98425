"""PPO against a known answer: the exact optimum of a world that can be listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from enumerable import (
    LONGEST,
    PAD,
    PROMPTS,
    TOKENIZER,
    UNFINISHED,
    Problem,
    World,
    by_prompt,
    every_sequence,
    expected,
    make_world,
    policy_of,
    token_logps,
)

from betaflow.config import Params, PPOTraining
from betaflow.data.tokenise import Batch
from betaflow.objectives.ppo import last_token, token_rewards
from betaflow.policy.loading import load_policy, load_reward_model
from betaflow.sampling.hf_engine import HFEngine
from betaflow.training import ppo
from betaflow.training.ppo import Models, Reward, Scale, reference_scale, train_ppo

BETA, TARGET_KL, PENALTY = 0.5, 1.0, 0.25
UNIT = Scale(0.0, 1.0)


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


class Run(NamedTuple):
    """A problem, the policy that PPO found, and what it reported on the way.

    `exact` are reward and KL of the policy by the iterations done.
    """

    problem: Problem
    policy: torch.Tensor
    rows: list[dict[str, Any]]
    exact: dict[int, tuple[float, float]]


def settings_of(params: Params, **changes: Any) -> PPOTraining:
    return params.ppo.training.model_copy(
        update={
            "optimizer": "adamw", "schedule": "linear", "warmup_steps": 0, "weight_decay": 0.0,
            "batch_size": 320, "micro_batch_size": 320, "iterations": 90, "epochs": 2,
            "minibatches": 2, "reuse_scoring": False, "max_new_tokens": LONGEST, "clip": 0.2,
            "value_clip": 0.2, "value_coefficient": 0.1, "gamma": 1.0, "lam": 0.95,
            "max_grad_norm": 1.0, "missing_eos_penalty": PENALTY, "critic_warmup": 5,
            "whiten_rewards": False, "checkpoint_seconds": 1e6, **changes,
        }
    )  # fmt: skip


def start(seed: int) -> tuple[World, Models]:
    world = make_world(Path("reference"), seed)
    reference, critic = load_policy(world.folder), load_reward_model(world.folder, new_head_seed=1)
    return world, Models(load_policy(world.folder), reference.eval(), critic)


def maximised(world: World, scale: Scale, models: Models) -> Problem:
    """The rewards that PPO maximises: normalised, less the penalty of not ending."""
    rewards = scale.normalise(world.scores) - PENALTY * UNFINISHED
    return Problem(rewards, policy_of(models.reference))


def exact_scale(world: World, models: Models) -> Scale:
    """Mean and spread of the scores under the reference, from the list of all completions."""
    reference = policy_of(models.reference)
    mean = float(expected(reference, world.scores))
    return Scale(mean, float(expected(reference, (world.scores - mean) ** 2)) ** 0.5)


def train(
    params: Params, seed: int, *, beta: float = BETA, target_kl: float = 0, **changes: Any
) -> Run:
    """World, rollouts and training, all of one seed.

    The problem is that of the exact scale; `exact` is in the scale that the run estimated, as its
    rows are.
    """
    world, models = start(seed)
    settings = settings_of(params, **changes)
    still = HFEngine(models.reference, TOKENIZER, 256)
    scale = reference_scale(world.score, still, PROMPTS * 128, settings, seed=seed)
    problem = maximised(world, exact_scale(world, models), models)
    in_rows = maximised(world, scale, models)
    exact: dict[int, tuple[float, float]] = {}

    def probe(done: int) -> dict[str, float]:
        if done % 5 == 0:
            policy = policy_of(models.policy)
            exact[done] = in_rows.reward(policy), in_rows.kl(policy)
        return {}

    trained, _ = train_ppo(
        models, Reward(world.score, scale), UNIT, HFEngine(models.policy, TOKENIZER, 320),
        PROMPTS * 128, settings, pad=PAD, label="ppo", beta=beta, target_kl=target_kl,
        peak_rate=2e-3, seed=seed, precision="float32", fingerprint="p", probe=probe,
    )  # fmt: skip
    return Run(problem, policy_of(models.policy), trained.metrics, exact)


def shortfall(problem: Problem, policy: torch.Tensor) -> float:
    """What is missing of the optimum's value, or of its gain over pi_ref's: the larger share."""
    best, first = problem.best(BETA), problem.value(problem.reference, BETA)
    missing = best - problem.value(policy, BETA)
    return max(missing / best, missing / (best - first))


def unfinished(policy: torch.Tensor) -> float:
    """How often a policy does not end its completions."""
    return float(expected(policy, UNFINISHED))


@pytest.mark.parametrize(("seed", "taught"), [(0, False), (1, False), (2, False), (0, True)])
def test_it_reaches_the_exact_optimum(seed: int, taught: bool, params: Params) -> None:
    problem, policy, rows, exact = train(params, seed, teach_states=taught)
    optimum = problem.optimum(BETA)
    assert problem.value(policy, BETA) <= problem.best(BETA) + 1e-6
    assert shortfall(problem, policy) <= 0.02
    assert unfinished(policy) == pytest.approx(unfinished(optimum), abs=0.02)

    # What a row says of the policy that its rollout was drawn from is so, but for the draws.
    steps = [done for done in exact if done < len(rows)]
    objective = [exact[n][0] - BETA * exact[n][1] - rows[n]["objective"] for n in steps]
    kl = [exact[n][1] - rows[n]["kl"] for n in steps]
    assert len(steps) == 17
    assert abs(sum(objective)) / 17 < 0.05
    assert abs(sum(kl)) / 17 < 0.03


def test_while_its_states_are_taught_the_policy_stays(params: Params) -> None:
    problem, policy, rows, _ = train(params, 0, iterations=30, critic_warmup=30, teach_states=True)
    gain = problem.best(BETA) - problem.value(problem.reference, BETA)
    moved = problem.value(policy, BETA) - problem.value(problem.reference, BETA)
    assert abs(moved) < 0.1 * gain
    early, late = (sum(row["value/loss"] for row in rows[n : n + 5]) for n in (0, 25))
    assert late < 0.8 * early
    assert sum(row["kl"] for row in rows[25:]) / 5 < 0.1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_answer_is_right_and_its_bounds_are_narrow(seed: int) -> None:
    """Without training: what a wrong coefficient, or no penalty, would lead to is out of bounds."""
    world, models = start(seed)
    chances = policy_of(models.reference).exp()
    assert torch.allclose(chances.sum(-1), torch.ones(len(PROMPTS)).double(), atol=1e-5)
    problem = maximised(world, exact_scale(world, models), models)

    optimum = problem.optimum(BETA)
    assert problem.value(optimum, BETA) == pytest.approx(problem.best(BETA), abs=1e-9)
    generator = torch.Generator().manual_seed(seed)
    for size in (0.01, 0.1, 1.0):
        noise = size * torch.randn(optimum.shape, generator=generator)
        other = torch.log_softmax(optimum + noise, -1)
        assert problem.value(other, BETA) < problem.best(BETA)
        assert problem.reward(other) < problem.frontier(problem.kl(other))
    assert problem.frontier(problem.kl(optimum)) == pytest.approx(problem.reward(optimum))

    for factor in (0.75, 1.33):
        assert shortfall(problem, problem.optimum(BETA * factor)) > 0.04
    free = problem._replace(rewards=problem.rewards + PENALTY * UNFINISHED)
    assert unfinished(free.optimum(BETA)) > unfinished(optimum) + 0.04


@pytest.mark.parametrize("beta", [0.16, 2.0])
def test_an_adaptive_coefficient_finds_its_target_and_the_best_reward_there(
    beta: float, params: Params
) -> None:
    problem, policy, _, _ = train(
        params, 0, beta=beta, target_kl=TARGET_KL, kl_horizon=2400, iterations=110
    )
    unadapted = problem.kl(problem.optimum(beta))
    assert not TARGET_KL / 5 < unadapted < TARGET_KL * 5
    kl, first = problem.kl(policy), problem.reward(problem.reference)
    assert kl == pytest.approx(TARGET_KL, rel=0.15)
    share = (problem.reward(policy) - first) / (problem.frontier(kl) - first)
    assert 0.97 <= share <= 1 + 1e-6


def flipped(
    scores: torch.Tensor, logps: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor, *,
    beta: float,
) -> torch.Tensor:  # fmt: skip
    """The KL is rewarded."""
    return token_rewards(scores, logps, theirs, mask, beta=-beta)


def early(
    scores: torch.Tensor, logps: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor, *,
    beta: float,
) -> torch.Tensor:  # fmt: skip
    """The score is at the token before the last one, where there is one."""
    rewards = token_rewards(torch.zeros_like(scores), logps, theirs, mask, beta=beta)
    place = torch.maximum(last_token(mask) - 1, mask.int().argmax(-1))
    return rewards.scatter_add(-1, place[:, None], scores[:, None].to(rewards.dtype))


@pytest.mark.parametrize("wrong", [flipped, early])
def test_with_wrong_rewards_it_does_not(
    wrong: Callable[..., torch.Tensor], params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo, "token_rewards", wrong)
    run = train(params, 0)
    assert shortfall(run.problem, run.policy) > 0.3


def perfect_values(problem: Problem, ours: torch.Tensor, theirs: torch.Tensor) -> Any:
    """A critic that knows E[r - BETA x (log pi - log pi_ref) still to come] of every beginning.

    Args:
        ours, theirs: of each token, as `token_logps`.
    """
    batch = every_sequence()
    chances = by_prompt(ours).exp().flatten()
    to_come = (ours - theirs).flip(-1).cumsum(-1).flip(-1)
    returns = problem.rewards.reshape(-1, 1) - BETA * to_come
    sums: dict[tuple[int, ...], torch.Tensor] = {}
    ids = batch.input_ids.tolist()
    for n, t in batch.completion_mask[:, 1:].nonzero().tolist():
        found = torch.stack([chances[n] * returns[n, t], chances[n]])
        before = tuple(ids[n][: t + 1])
        sums[before] = sums.get(before, 0) + found

    def values(_critic: Any, batch: Batch, _scale: Scale) -> torch.Tensor:
        mask = batch.completion_mask[:, 1:]
        out, ids = torch.zeros(mask.shape), batch.input_ids.tolist()
        for n, t in mask.nonzero().tolist():
            total, chance = sums[tuple(ids[n][: t + 1])]
            out[n, t] = total / chance
        return out.to(mask.device)

    return values


def test_the_first_gradient_is_that_of_the_objective(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a policy that is not the reference, with a perfect critic; but for draws and length."""
    world, models = start(0)
    with torch.no_grad():
        for parameter in models.policy.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.08 * torch.randn_like(parameter))
    scale = Scale(float(world.scores.mean()), float(world.scores.std()))
    problem = maximised(world, scale, models)
    ours, theirs = token_logps(models.policy), token_logps(models.reference).detach()
    policy, weights = by_prompt(ours), list(models.policy.parameters())
    exact = [
        torch.cat([g.flatten() for g in torch.autograd.grad(part, weights, retain_graph=True)])
        for part in (
            expected(policy, problem.rewards), expected(policy, policy - problem.reference)
        )
    ]  # fmt: skip

    def plain(_settings: Any, groups: Any, *, eps: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=0.0)

    values = perfect_values(problem, ours.detach(), theirs)
    monkeypatch.setattr(ppo, "_values", values)
    monkeypatch.setattr(ppo, "require_same", lambda *_: None)
    monkeypatch.setattr(ppo, "make_optimizer", plain)
    settings = settings_of(
        params, batch_size=8192, micro_batch_size=8192, iterations=1, epochs=1, minibatches=1,
        critic_warmup=0, max_grad_norm=1e9, schedule="constant",
    )  # fmt: skip
    before = [weight.detach().clone() for weight in weights]
    train_ppo(
        models, Reward(world.score, scale), UNIT, HFEngine(models.policy, TOKENIZER, 8192),
        PROMPTS * 128, settings, pad=PAD, label="ppo", beta=BETA, target_kl=0, peak_rate=1.0,
        seed=0, precision="float32", fingerprint="p",
    )  # fmt: skip
    step = torch.cat(
        [(a.detach() - b).flatten() for a, b in zip(weights, before, strict=True)]
    ).double()
    of_reward, of_kl = (part.double() for part in exact)
    wanted = of_reward - BETA * of_kl
    assert torch.cosine_similarity(step, wanted, 0) > 0.998
    # The step is a multiple of (gradient of the reward) - coefficient x (gradient of the KL).
    parts = torch.stack([of_reward, of_kl], 1)
    along_reward, along_kl = torch.linalg.lstsq(parts, step[:, None]).solution.flatten().tolist()
    assert along_reward > 0
    assert -along_kl / along_reward == pytest.approx(BETA, rel=0.1)
