"""Online DPO: what its steps show, and against the exact optimum of a world that can be listed."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
import torch
from enumerable import (
    LONGEST,
    PAD,
    PLACE,
    PROMPTS,
    TOKENIZER,
    Problem,
    World,
    make_world,
    policy_of,
)

from betaflow.config import OnlineSettings, Params
from betaflow.data.tokenise import Encoded
from betaflow.errors import UserError
from betaflow.policy.loading import load_policy
from betaflow.policy.scorer import Scorer
from betaflow.sampling.engine import Completion
from betaflow.sampling.hf_engine import HFEngine
from betaflow.training.dpo import ReferencedPairs, dpo_objective
from betaflow.training.loop import Stopped
from betaflow.training.online_dpo import labelled, train_online_dpo
from betaflow.training.prepare import prepare

BETA = 0.5
NONE = ReferencedPairs([], [], [], torch.zeros(0), torch.zeros(0))


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


class Run(NamedTuple):
    """A problem, the policy that was found, and the rows."""

    problem: Problem
    policy: torch.Tensor
    rows: list[dict[str, Any]]


def rewards_of(world: World, reference: torch.Tensor) -> torch.Tensor:
    """The world's scores, of mean 0 and variance 1 on the reference's completions."""
    chances = reference.exp() / len(PROMPTS)
    mean = (chances * world.scores).sum()
    return (world.scores - mean) / (chances * (world.scores - mean) ** 2).sum().sqrt()


def train(
    params: Params,
    seed: int,
    *,
    steps: int = 160,
    labels: str = "drawn",
    value_steps: int = 0,
    **options: Any,
) -> Run:
    world = make_world(Path("reference"), seed)
    policy, reference = load_policy(world.folder), load_policy(world.folder).eval()
    problem = Problem(rewards_of(world, policy_of(reference)), policy_of(reference))
    settings = params.dpo.training.model_copy(
        update={"warmup_steps": 0, "micro_batch_tokens": 4096, "checkpoint_seconds": 1e-6}
    )
    prompts = PROMPTS * 64

    def reward(place: int, completion: Completion) -> float:
        row = PROMPTS.index(prompts[place])
        return float(problem.rewards[row, PLACE[tuple(completion.token_ids)]])

    trained, _ = train_online_dpo(
        prepare(policy, settings, pad=PAD), Scorer(reference, PAD),
        HFEngine(policy, TOKENIZER, 256), options.pop("reward", reward), prompts, NONE, settings,
        OnlineSettings.model_validate(
            {
                "steps": steps, "prompts": 40, "draws": 8, "labels": labels,
                "max_new_tokens": LONGEST, "value_steps": value_steps, "value_rate": 5e-3,
            }
        ),
        label="online", objective=dpo_objective(settings, BETA), peak_rate=5e-3, seed=seed,
        precision="float32", fingerprint="p", **options,
    )  # fmt: skip
    return Run(problem, policy_of(policy), trained.metrics)


@pytest.mark.parametrize(
    ("labels", "seed", "value_steps", "within"),
    [
        ("drawn", 0, 0, 0.05),
        ("expected", 0, 0, 0.02),
        ("expected", 1, 0, 0.02),
        ("expected", 0, 40, 0.02),
    ],
)
def test_it_comes_near_the_exact_optimum(
    labels: str, seed: int, value_steps: int, within: float, params: Params
) -> None:
    """As near as labels drawn at random let it, and nearer by their mean."""
    problem, policy, rows = train(
        params, seed, steps=160 + value_steps, labels=labels, value_steps=value_steps
    )
    best, first = problem.best(BETA), problem.value(problem.reference, BETA)
    assert problem.value(policy, BETA) <= best + 1e-6
    assert (best - problem.value(policy, BETA)) / (best - first) <= within
    assert rows[value_steps]["loss"] == pytest.approx(
        math.log(2), abs=0.05 if value_steps else 1e-5
    )
    assert rows[value_steps]["log_ratio"] == pytest.approx(0, abs=0.1 if value_steps else 1e-5)
    # What a row says of its draws is so of the policy, but for the draws: here of the last five.
    late = rows[-5:]
    assert sum(r["reward/score"] for r in late) / 5 == pytest.approx(
        problem.reward(policy), abs=0.1
    )
    assert {"rewards/accuracy", "grad_norm", "tokens", "flops", "completion_tokens"} <= set(late[0])
    assert ["value/loss" in row for row in rows].count(True) == value_steps


def test_in_its_first_steps_the_value_is_learned_and_the_policy_stays(params: Params) -> None:
    problem, policy, rows = train(params, 0, steps=61, labels="expected", value_steps=60)
    best = problem.best(BETA) - problem.value(problem.reference, BETA)
    assert abs(problem.value(policy, BETA) - problem.value(problem.reference, BETA)) < 0.1 * best
    early, late = (sum(row["value/loss"] for row in rows[n : n + 5]) for n in (0, 55))
    assert late < 0.8 * early


@pytest.mark.parametrize("value_steps", [0, 2])
def test_a_policy_that_is_not_the_reference_is_refused(
    value_steps: int, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(policy: Any, settings: Any, **options: Any) -> Scorer:
        with torch.no_grad():
            next(policy.parameters()).mul_(1.5)
        return original(policy, settings, **options)

    original = prepare
    monkeypatch.setitem(globals(), "prepare", moved)
    with pytest.raises(UserError, match="before training"):
        train(params, 0, steps=3, value_steps=value_steps)


@pytest.mark.parametrize("value_steps", [0, 2, 4])
def test_a_run_that_is_stopped_goes_on_to_the_same_rows(value_steps: int, params: Params) -> None:
    whole = train(params, 0, steps=5, value_steps=value_steps)
    shutil.rmtree("out")

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 2:
            raise Stopped(130)

    with pytest.raises(Stopped):
        train(params, 0, steps=5, value_steps=value_steps, on_step=stop)
    again = train(params, 0, steps=5, value_steps=value_steps)
    assert again.rows == whole.rows
    assert torch.equal(again.policy, whole.policy)


def test_a_policy_whose_completions_are_all_equal_is_told_of(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(self: HFEngine, requests: list[Any]) -> list[Completion]:
        return [Completion([3, 2], "3", "stop", -1.0)] * len(requests)

    monkeypatch.setattr(HFEngine, "generate", one)
    with pytest.raises(UserError, match="all completions of every prompt are equal"):
        train(params, 0, steps=1)


def test_labels_are_bradley_terry_s_and_equal_completions_make_no_pair() -> None:
    row = [Encoded([1], [3, 2]), Encoded([1], [4, 2]), Encoded([1], [3, 2])]
    reference = torch.tensor([-1.0, -2.0, -1.0])
    rng, first = Random(0), Counter[int]()
    for _ in range(2000):
        pairs = labelled([row], [[1.0, 0.0, 1.0]], reference, rng, "7")
        assert pairs.ids == ["7/0/0-1", "7/0/1-2"]
        assert pairs.chances is None
        for chosen, rejected, ours, theirs in zip(*pairs[1:5], strict=True):
            assert {chosen.completion[0], rejected.completion[0]} == {3, 4}
            assert float(ours) == 2.0 - chosen.completion[0]
            assert float(theirs) == 2.0 - rejected.completion[0]
            first[chosen.completion[0]] += 1
    share = first[3] / sum(first.values())
    assert share == pytest.approx(1 / (1 + math.exp(-1)), abs=0.02)


def test_expected_labels_are_the_mean_over_drawn_ones() -> None:
    """The higher reward is chosen, with Bradley-Terry's chance; a tie is one half."""
    row = [Encoded([1], [3, 2]), Encoded([1], [4, 2]), Encoded([1], [5, 2])]
    pairs = labelled([row], [[0.0, 2.0, 0.0]], torch.tensor([-1.0, -2.0, -3.0]), None, "7")
    assert pairs.chances is not None
    assert [one.completion[0] for one in pairs.chosen] == [4, 3, 4]
    assert [one.completion[0] for one in pairs.rejected] == [3, 5, 5]
    assert pairs.chances.tolist() == pytest.approx(
        [1 / (1 + math.exp(-2)), 0.5, 1 / (1 + math.exp(-2))]
    )
    assert pairs.reference_chosen.tolist() == [-2.0, -1.0, -2.0]
