"""PPO on a tiny model: what every iteration must show, and that it learns what it is given."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from betaflow.config import Params
from betaflow.data.tokenise import Encoded, collate
from betaflow.errors import UserError
from betaflow.objectives.ppo import advantages, token_rewards
from betaflow.policy.loading import load_policy, load_reward_model, load_tokenizer
from betaflow.policy.logps import token_logps
from betaflow.sampling.hf_engine import HFEngine
from betaflow.training import ppo
from betaflow.training.loop import Stopped
from betaflow.training.ppo import Models, Reward, Scale, reference_scale, train_ppo

PROMPTS = [[1, 30 + n % 5] for n in range(40)]
UNIT = Scale(0.0, 1.0)


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def three(tiny: Path) -> Models:
    return Models(
        load_policy(tiny), load_policy(tiny).eval(), load_reward_model(tiny, new_head_seed=1)
    )


def shortness(episodes: list[Encoded]) -> torch.Tensor:
    """A score that falls with the completion's length."""
    return torch.tensor([2.0 - 0.4 * len(episode.completion) for episode in episodes])


def small(episodes: list[Encoded]) -> torch.Tensor:
    """Counts small token ids."""
    return torch.tensor([float(sum(i < 200 for i in e.completion)) for e in episodes])


def run(
    models: Models,
    tiny: Path,
    params: Params,
    *,
    score: Callable[[list[Encoded]], torch.Tensor] = shortness,
    target_kl: float = 0,
    beta: float = 0.02,
    seed: int = 0,
    peak_rate: float = 3e-3,
    label: str = "ppo",
    precision: str = "float32",
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> list[dict[str, Any]]:
    settings = params.ppo.training.model_copy(
        update={
            "warmup_steps": 0, "schedule": "constant", "batch_size": 32, "micro_batch_size": 16,
            "iterations": 2, "epochs": 2, "max_new_tokens": 10, "critic_warmup": 0,
            "reuse_scoring": changes.get("minibatches", 1) == 1, **changes,
        }
    )  # fmt: skip
    tokenizer = load_tokenizer(tiny)
    engine = HFEngine(models.policy, tokenizer, batch_size=settings.batch_size)
    trained, phases = train_ppo(
        models, Reward(score, UNIT), UNIT, engine, PROMPTS, settings, pad=0, label=label,
        beta=beta, target_kl=target_kl, peak_rate=peak_rate, seed=seed, precision=precision,
        fingerprint="p", **(options or {}),
    )  # fmt: skip
    assert {"rollout", "scoring", "update"} <= set(phases)
    return trained.metrics


def test_before_the_first_step_there_is_no_kl_the_ratio_is_one_and_nothing_is_clipped(
    tiny: Path, params: Params
) -> None:
    first, second = run(three(tiny), tiny, params, minibatches=2)
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert first["reward/kl"] == pytest.approx(0, abs=1e-4)
    for row in (first, second):  # the rollout is scored by the weights that drew it
        assert row["ratio_start"] == pytest.approx(1, abs=1e-5)
        assert row["clip_start"] == 0
    assert first["clip_fraction"] > 0
    assert second["kl"] > 0


def test_in_bfloat16_it_begins_at_no_kl_and_comes_close(tiny: Path, params: Params) -> None:
    models = three(tiny)
    first, second = run(models, tiny, params, precision="bfloat16")
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert {p.dtype for p in models.policy.parameters()} == {torch.float32}
    plain = run(three(tiny), tiny, params, label="plain")
    assert first["reward/score"] == plain[0]["reward/score"]  # the first draws are float32's
    assert first["entropy"] == pytest.approx(plain[0]["entropy"], rel=2e-2)
    assert second["kl"] == pytest.approx(plain[1]["kl"], rel=0.3)


def test_a_policy_that_is_not_the_reference_is_refused(tiny: Path, params: Params) -> None:
    models = three(tiny)
    with torch.no_grad():
        next(models.policy.parameters()).mul_(1.1)
    with pytest.raises(UserError, match="they are not the same model"):
        run(models, tiny, params)


def test_an_episode_that_could_outgrow_the_model_is_refused(tiny: Path, params: Params) -> None:
    with pytest.raises(UserError, match=r"129 tokens .* 128 positions .* lower .*max_new_tokens"):
        run(three(tiny), tiny, params, max_new_tokens=127)


def test_scores_are_normalised_on_the_reference_s_own_completions(
    tiny: Path, params: Params
) -> None:
    settings = params.ppo.training.model_copy(update={"batch_size": 16, "max_new_tokens": 8})
    engine = HFEngine(load_policy(tiny).eval(), load_tokenizer(tiny), batch_size=16)
    prompts = PROMPTS * 6  # 240, fewer than a scale may rest on

    def score(episodes: list[Encoded]) -> torch.Tensor:
        return 5 * small(episodes)  # its spread is far from 1

    scale = reference_scale(score, engine, prompts, settings, seed=0)
    assert scale == reference_scale(score, engine, prompts, settings, seed=0)
    # Other draws of the reference have mean 0 and variance 1 on it, but for noise.
    episodes, _ = ppo._draw(engine, prompts, settings, 1, 0)
    fresh = scale.normalise(score(episodes))
    assert len(fresh) == 240
    assert abs(float(fresh.mean())) < 4 * (2 / 240) ** 0.5
    # A normal score's spread, and the scale's own: each is known to 1 / sqrt(2 x 240).
    assert float(fresh.std()) == pytest.approx(1, abs=4 * (1 / 240) ** 0.5)


def test_in_warm_up_the_critic_alone_moves(tiny: Path, params: Params) -> None:
    models = three(tiny)
    before = [p.detach().clone() for p in models.policy.parameters()]
    critic = [p.detach().clone() for p in models.critic.parameters()]
    rows = run(models, tiny, params, iterations=2, critic_warmup=2, target_kl=1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, models.policy.parameters(), strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(critic, models.critic.parameters(), strict=True)
    )
    # A KL of 0 that nothing could have raised must not drive an adaptive coefficient down.
    rows = run(three(tiny), tiny, params, iterations=5, critic_warmup=2, target_kl=1.0)
    assert [row["kl_coefficient"] for row in rows[:4]] == [0.02] * 4
    assert rows[4]["kl_coefficient"] != 0.02


def test_in_warm_up_the_policy_s_states_can_be_taught(tiny: Path, params: Params) -> None:
    rows = run(three(tiny), tiny, params, iterations=3, critic_warmup=2, teach_states=True)
    free = run(three(tiny), tiny, params, iterations=3, critic_warmup=2, label="free")
    assert ["value/loss" in row for row in rows] == [True, True, False]
    assert not any("value/loss" in row for row in free)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert rows[1]["kl"] > 0 and free[1]["kl"] == pytest.approx(0, abs=1e-5)
    assert rows[0]["value_loss"] == free[0]["value_loss"]  # the critic's own learning is the same


def test_after_the_lesson_the_policy_s_optimizer_starts_anew_and_the_critic_s_goes_on(
    tiny: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.Optimizer] = []

    def make(*given: Any, **options: Any) -> torch.optim.Optimizer:
        made.append(original(*given, **options))
        return made[-1]

    original, models = ppo.make_optimizer, three(tiny)
    monkeypatch.setattr(ppo, "make_optimizer", make)
    run(models, tiny, params, iterations=3, critic_warmup=2, teach_states=True)
    steps = [
        {int(made[0].state[parameter]["step"]) for parameter in model.parameters()}
        for model in (models.policy, models.critic)
    ]
    assert steps == [{2}, {6}]  # two epochs an iteration


def test_what_a_mini_batch_teaches_is_of_its_own_episodes_and_scores(
    tiny: Path, params: Params
) -> None:
    models = three(tiny)
    plain = Models(*(copy.deepcopy(model) for model in models))
    settings = params.ppo.training.model_copy(update={"micro_batch_size": 2})
    teacher = ppo._Teacher(models, settings, 0, "float32")
    episodes = [Encoded([1, 30 + n], [40 + n] * (n + 1)) for n in range(5)]
    scores = torch.tensor([0.5, -1.0, 2.0, 0.0, 3.0])
    found = teacher(episodes, scores, torch.tensor([1, 2, 4]))
    assert found["value/loss"] == pytest.approx(2 * (1 + 4 + 9) / 3)  # a head that tells 0
    assert found["value/kl"] == pytest.approx(0, abs=1e-6)
    # d/db of (b - r)^2 at 0, its mean over tokens and that of the last: 2 x -2r.
    assert float(teacher.head.bias.grad) == pytest.approx(-4 * (-1 + 2 + 3) / 3, rel=1e-5)
    states = [
        plain.policy.base_model(torch.tensor([e.prompt + e.completion])).last_hidden_state[0, 1:-1]
        for e in episodes
    ]
    wanted = sum(-2 * scores[i] * (states[i].mean(0) + states[i][-1]) for i in (1, 2, 4)) / 3
    torch.testing.assert_close(teacher.head.weight.grad[0], wanted, rtol=1e-4, atol=1e-5)


def test_it_learns_the_reward_it_is_given(tiny: Path, params: Params) -> None:
    rows = run(
        three(tiny), tiny, params, iterations=25, batch_size=64, missing_eos_penalty=0.5,
        minibatches=2, whiten_rewards=True,
    )  # fmt: skip
    early, late = rows[:3], rows[-3:]
    assert sum(r["reward/score"] for r in late) > sum(r["reward/score"] for r in early) + 1.0
    assert sum(r["completion_tokens"] for r in late) < sum(r["completion_tokens"] for r in early)


@pytest.mark.parametrize("taught", [0, 2, 4])
def test_a_run_that_is_stopped_goes_on_to_the_same_rows(
    taught: int, tiny: Path, params: Params
) -> None:
    """The adaptive coefficient too, which is a function of the rows; also while states learn."""
    options = {
        "iterations": 5, "target_kl": 0.5, "kl_horizon": 64, "checkpoint_seconds": 1e-6,
        "critic_warmup": taught, "teach_states": bool(taught),
    }  # fmt: skip
    whole = run(three(tiny), tiny, params, **options)
    shutil.rmtree("out")

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 2:
            raise Stopped(130)

    with pytest.raises(Stopped):
        run(three(tiny), tiny, params, options={"on_step": stop}, **options)
    # The step that was cut off had no checkpoint: it is taken again.
    assert run(three(tiny), tiny, params, **options) == whole
    # The first two, and those of the warm-up, are of no KL that a coefficient could have raised.
    assert len({row["kl_coefficient"] for row in whole}) == max(1, 4 - taught)


def test_the_engine_is_given_the_weights_before_each_rollout(tiny: Path, params: Params) -> None:
    models = three(tiny)
    stale = load_policy(tiny).eval()
    given: list[float] = []

    def hand_over(sequences: list[Encoded]) -> None:
        assert sequences and all(s.prompt and s.completion for s in sequences)
        stale.load_state_dict(models.policy.state_dict())
        given.append(float(next(models.policy.parameters()).detach().sum()))

    changes = {"iterations": 3}
    fresh = run(three(tiny), tiny, params, **changes)
    shutil.rmtree("out")
    engine = HFEngine(stale, load_tokenizer(tiny), batch_size=32)
    original = ppo._draw

    def draw(_engine: Any, *rest: Any) -> Any:
        return original(engine, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "_draw", draw)
        rows = run(models, tiny, params, options={"hand_over": hand_over}, **changes)
    assert rows == fresh
    assert len(set(given)) == 3


def test_each_rollout_is_of_other_prompts_until_all_were_asked(
    tiny: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    original = ppo._draw

    def draw(engine: Any, prompts: Any, *rest: Any) -> Any:
        asked.extend(map(id, prompts))
        return original(engine, prompts, *rest)

    monkeypatch.setattr(ppo, "_draw", draw)
    run(three(tiny), tiny, params, batch_size=20)
    assert sorted(asked) == sorted(map(id, PROMPTS))


def test_mini_batches_are_a_new_split_of_the_rollout_each_epoch(params: Params) -> None:
    settings = params.ppo.training.model_copy(update={"epochs": 2, "minibatches": 4})
    found = [rows.tolist() for rows in ppo._minibatches(22, settings, 5)]
    assert len(found) == 8
    assert all(rows == sorted(rows) for rows in found)  # longest first, as the rollout is
    for epoch in (found[:4], found[4:]):
        assert sorted(row for rows in epoch for row in rows) == list(range(22))
        assert sorted(map(len, epoch)) == [5, 5, 6, 6]
        assert any(rows != list(range(rows[0], rows[-1] + 1)) for rows in epoch)
    assert found[:4] != found[4:]
    assert [rows.tolist() for rows in ppo._minibatches(22, settings, 5)] == found
    assert [rows.tolist() for rows in ppo._minibatches(22, settings, 6)] != found


def test_policy_and_critic_are_clipped_each_by_its_own_norm_and_adam_s_eps_is_1e_5(
    tiny: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, float]] = []
    original = ppo.optimizer_step

    def step(optimizer: torch.optim.Optimizer, rate: float, max_grad_norm: float) -> float:
        norm = original(optimizer, rate, max_grad_norm)
        seen.append((optimizer, max_grad_norm))
        return norm

    monkeypatch.setattr(ppo, "optimizer_step", step)
    models = three(tiny)
    run(models, tiny, params, iterations=1, max_grad_norm=0.7)
    assert len(seen) == 2
    for optimizer, most in seen:
        assert most == 0.7
        groups = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
        assert groups == [set(map(id, m.parameters())) for m in (models.policy, models.critic)]
        assert {group["eps"] for group in optimizer.param_groups} == {1e-5}


def test_the_probe_s_figures_join_the_row(tiny: Path, params: Params) -> None:
    rows = run(
        three(tiny), tiny, params,
        options={"probe": lambda done: {"curve/x": 7.0} if done == 2 else {}},
    )  # fmt: skip
    assert [row.get("curve/x") for row in rows] == [None, 7.0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("taught", [0, 1])
def test_the_scoring_s_forward_pass_is_the_update_s_bit_by_bit(
    taught: int, precision: str, tiny: Path, params: Params
) -> None:
    found = []
    for reuse in (False, True):
        models = three(tiny)
        rows = run(
            models, tiny, params, iterations=3, micro_batch_size=12, label=f"reuse-{reuse}",
            precision=precision, reuse_scoring=reuse, critic_warmup=taught,
            teach_states=bool(taught),
        )  # fmt: skip
        weights = [p for model in (models.policy, models.critic) for p in model.parameters()]
        found.append((rows, [weight.detach() for weight in weights]))
    (rows, weights), (others_rows, others) = found
    flops = [[row.pop("flops") for row in some] for some in (rows, others_rows)]
    assert all(more > less for more, less in zip(*flops, strict=True))
    assert rows == others_rows
    assert all(torch.equal(*pair) for pair in zip(weights, others, strict=True))


def test_the_scoring_runs_policy_and_critic_for_the_first_pass_too(
    tiny: Path, params: Params
) -> None:
    """Counted on a rollout of two micro-batches; drawing is in inference mode."""
    counts = []
    for reuse in (False, True):
        models = three(tiny)
        calls: list[int] = []
        for model in (models.policy.base_model, models.critic.base_model):
            model.register_forward_pre_hook(  # type: ignore[operator, union-attr]
                lambda *_, seen=calls: seen.append(torch.is_inference_mode_enabled())
            )
        run(models, tiny, params, iterations=1, label=f"count-{reuse}", reuse_scoring=reuse)
        counts.append(calls.count(False))
    assert counts[0] - counts[1] == 2 * 2


@pytest.mark.parametrize("reuse", [False, True])
def test_flops_and_tokens_by_hand(reuse: bool, tiny: Path, params: Params) -> None:
    models = three(tiny)
    weights = sum(p.numel() for p in models.policy.parameters() if p.dim() > 1)
    backbone = sum(p.numel() for p in models.critic.parameters() if p.dim() > 1)
    backbone -= models.critic.get_input_embeddings().weight.numel()  # type: ignore[operator]
    changes = {"iterations": 1, "epochs": 3, "batch_size": 8, "reuse_scoring": reuse}
    row = run(models, tiny, params, **changes)[0]
    tokens = row["tokens"] / 3
    assert tokens == row["sampled_tokens"] + 8 * 2  # prompts of two tokens
    rollout = scoring = 2 * weights
    scoring += 2 * weights + 2 * backbone
    update = (3 * 3 - reuse) * (2 * weights + 2 * backbone)
    assert row["flops"] == pytest.approx(tokens * (rollout + scoring + update), rel=1e-9)


def test_a_taught_policy_s_flops_are_counted(tiny: Path, params: Params) -> None:
    changes = {"iterations": 1, "epochs": 3, "batch_size": 8, "critic_warmup": 1}
    models = three(tiny)
    weights = sum(p.numel() for p in models.policy.parameters() if p.dim() > 1)
    taught = run(models, tiny, params, teach_states=True, **changes)[0]
    free = run(three(tiny), tiny, params, label="free", **changes)[0]
    # In each epoch a forward and a backward pass of the policy and a forward of the reference.
    assert taught["tokens"] == free["tokens"]
    more = taught["flops"] - free["flops"]
    assert more == pytest.approx(free["tokens"] * 4 * 2 * weights, rel=1e-9)


@pytest.mark.parametrize("taught", [0, 1])
def test_two_threads_do_what_one_does_bit_by_bit(taught: int, tiny: Path, params: Params) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            models = three(tiny)
            rows = run(
                models, tiny, params, micro_batch_size=16 if taught else 6,
                label=f"threads-{threads}",
                critic_warmup=taught, teach_states=bool(taught),
            )  # fmt: skip
            weights = [p for model in (models.policy, models.critic) for p in model.parameters()]
            found.append((rows, [weight.detach() for weight in weights]))
    finally:
        torch.set_num_threads(before)
    (rows, weights), (others_rows, others) = found
    assert rows == others_rows
    assert all(torch.equal(*pair) for pair in zip(weights, others, strict=True))


def test_a_weight_that_some_batches_leave_out_keeps_the_others_gradient() -> None:
    one, two = torch.ones(2), torch.full((2,), 2.0)
    found = ppo._added([None, one.clone(), one.clone(), None], [two, None, two, None])
    assert [None if g is None else g.tolist() for g in found] == [[2, 2], [1, 1], [3, 3], None]


# Every dial away from where it does nothing.
DIALS = {
    "gamma": 0.9, "lam": 0.5, "whiten_rewards": True, "missing_eos_penalty": 0.7,
    "value_clip": 0.05, "clip": 0.1, "value_coefficient": 0.3, "micro_batch_size": 3,
    "batch_size": 6, "reuse_scoring": False, "minibatches": 1, "epochs": 1,
}  # fmt: skip
CRITIC = Scale(0.3, 2.0)
EPISODES = [Encoded([1, 30], [40 + n, 50, 60 + n, 2][: 2 + n % 3]) for n in range(6)][::-1]


def moved(tiny: Path) -> Models:
    """A policy that is no longer the reference."""
    models = three(tiny)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in models.policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return models


def test_a_rollout_is_scored_by_every_dial_as_by_hand(tiny: Path, params: Params) -> None:
    """Every number from the models' plain logits, and the objectives by their own functions."""
    settings = params.ppo.training.model_copy(update=DIALS)
    models = moved(tiny)
    finished = torch.tensor([True, False, True, True, False, True])
    raw = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, 3.0])
    reward = Reward(lambda _: raw, Scale(1.0, 4.0))
    with torch.no_grad():
        rollout, scores, _, told = ppo._score(
            models, reward, CRITIC, EPISODES, finished, settings, 0, 0.4, False, "float32"
        )
    expected_scores = (raw - 1.0) / 4.0 - 0.7 * (~finished).float()
    torch.testing.assert_close(scores, expected_scores)

    mask = rollout.mask
    logps, theirs, kl, values, entropy = (torch.zeros(mask.shape) for _ in range(5))
    for row, episode in enumerate(EPISODES):
        ids = torch.tensor([episode.prompt + episode.completion])
        with torch.no_grad():
            ours, other = (
                torch.log_softmax(m(input_ids=ids).logits[0], -1)
                for m in (models.policy, models.reference)
            )
            hidden = models.critic.base_model(input_ids=ids).last_hidden_state  # type: ignore
            raw_values = (hidden @ models.critic.score.weight.T)[0, :, 0]  # type: ignore
        for at in range(len(episode.prompt) - 1, ids.shape[1] - 1):
            assert mask[row, at]
            logps[row, at], theirs[row, at] = ours[at, ids[0, at + 1]], other[at, ids[0, at + 1]]
            kl[row, at] = (ours[at].exp() * (ours[at] - other[at])).sum()
            entropy[row, at] = -(ours[at].exp() * ours[at]).sum()
            values[row, at] = (raw_values[at] - CRITIC.mean) / CRITIC.std
    assert int(mask.sum()) == sum(len(episode.completion) for episode in EPISODES)
    close = {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(rollout.logps, logps, **close)
    torch.testing.assert_close(rollout.values, values, **close)

    rewards = token_rewards(expected_scores, logps, theirs, mask, beta=0.4)
    mean = rewards[mask].mean()
    rewards = torch.where(mask, (rewards - mean) / rewards[mask].std(unbiased=False) + mean, 0.0)
    gains, returns = advantages(rewards, values, mask, gamma=0.9, lam=0.5)
    white = (gains - gains[mask].mean()) / gains[mask].std(unbiased=False) * mask
    torch.testing.assert_close(rollout.returns, returns, **close)
    torch.testing.assert_close(rollout.advantages, white, **close)
    nats = float(kl.sum(-1).mean())
    left = ((returns - values)[mask] ** 2).mean() / returns[mask].var(unbiased=False)
    assert told == pytest.approx(
        {
            "reward/score": float(expected_scores.mean()),
            "reward/kl": float((logps - theirs).sum(-1).mean()),
            "kl": nats,
            "objective": float(expected_scores.mean()) - 0.4 * nats,
            "entropy": float(entropy[mask].mean()),
            "value": float(values[mask].mean()),
            "return": float(returns[mask].mean()),
            "explained_variance": float(1 - left),
            "completion_tokens": float(mask.sum(-1).float().mean()),
            "finished": 4 / 6,
        },
        rel=2e-3, abs=1e-4,
    )  # fmt: skip


def test_an_update_has_the_clipped_losses_gradient(tiny: Path, params: Params) -> None:
    """Against the formulae of Schulman et al. 2017, where both clips bite."""
    settings = params.ppo.training.model_copy(update=DIALS)
    models = moved(tiny)
    batch = collate(EPISODES, 0)
    mask = batch.completion_mask[:, 1:]
    torch.manual_seed(4)
    old, advantage, before, returns = (0.3 * torch.randn(mask.shape) * mask for _ in range(4))
    with torch.no_grad():
        old = old + token_logps(models.policy, batch)
        before = before + ppo._values(models.critic, batch, CRITIC)
    rollout = ppo.Rollout(batch, mask, old, before, advantage, returns)
    learnt = [*models.policy.parameters(), *models.critic.parameters()]
    tokens = float(mask.sum())
    found, figures = ppo._gradients(
        models, CRITIC, [(rollout, None)], tokens, learnt, settings, False, "float32"
    )

    log_ratio = (token_logps(models.policy, batch) - old)[mask]
    ratio, gain = log_ratio.exp(), advantage[mask]
    policy = -torch.minimum(ratio * gain, ratio.clamp(0.9, 1.1) * gain).mean()
    values, target = ppo._values(models.critic, batch, CRITIC)[mask], returns[mask]
    near = before[mask] + (values - before[mask]).clamp(-0.05, 0.05)
    value = 0.5 * torch.maximum((values - target) ** 2, (near - target) ** 2).mean()
    expected = torch.autograd.grad(policy + 0.3 * value, learnt, allow_unused=True)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    beyond = float(((ratio - 1).abs() > 0.1).float().mean())
    assert 0.2 < beyond < 1
    assert figures["clip_fraction"] / tokens == pytest.approx(beyond)
    assert figures["value_clip_fraction"] / tokens == pytest.approx(
        float(((values - before[mask]).abs() > 0.05).float().mean())
    )
    assert figures["policy"] / tokens == pytest.approx(float(policy), rel=1e-4)
    assert figures["value"] / tokens == pytest.approx(float(value), rel=1e-4)
    assert figures["approx_kl"] / tokens == pytest.approx(
        float((ratio - 1 - log_ratio).mean()), rel=1e-3
    )


def test_scores_that_are_all_the_same_are_refused_and_few_prompts_are_drawn_from_again(
    tiny: Path, params: Params
) -> None:
    engine = HFEngine(load_policy(tiny), load_tokenizer(tiny), batch_size=64)
    settings = params.ppo.training.model_copy(update={"max_new_tokens": 6})
    scale = reference_scale(shortness, engine, [[1, 30]], settings, seed=0)
    assert scale.std > 0.01
    with pytest.raises(UserError, match="256 completions of the reference have one score, 2"):
        reference_scale(lambda e: torch.full((len(e),), 2.0), engine, [[1, 30]], settings, seed=0)
