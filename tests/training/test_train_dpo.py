"""The DPO trainer on a tiny model: what must hold whatever the data."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from preferences import sequences

from betaflow.config import LoRASettings, Params
from betaflow.data.tokenise import Encoded
from betaflow.errors import UserError
from betaflow.objectives.dpo import LOSSES, DPOLoss, dpo_loss
from betaflow.objectives.unlikelihood import unlikelihood_loss
from betaflow.policy.loading import load_policy, load_tokenizer
from betaflow.policy.lora import adapters, add_adapters, merge_adapters
from betaflow.policy.packing import all_sequences
from betaflow.policy.scorer import Scorer
from betaflow.sampling.engine import Request
from betaflow.sampling.hf_engine import HFEngine
from betaflow.training.dpo import (
    METRICS,
    Objective,
    ReferencedPairs,
    dpo_objective,
    pair_metrics,
    train_dpo,
)
from betaflow.training.prepare import prepare
from betaflow.training.shares import share

QUICK = {
    "batch_of": "pairs", "batch_size": 8, "micro_batch_tokens": 60, "warmup_steps": 0,
    "schedule": "constant",
}  # fmt: skip
LORA = LoRASettings(rank=4, alpha=8, dropout=0.0, targets=None)


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def pairs_of(tiny: Path, count: int = 24) -> ReferencedPairs:
    sides = sequences(count, True), sequences(count, False)
    scorer = Scorer(load_policy(tiny), pad=0)
    logps = [all_sequences(scorer, s, budget=200, precision="float32") for s in sides]
    return ReferencedPairs([f"pair-{n}" for n in range(count)], *sides, *logps)


def swapped(pairs: ReferencedPairs) -> ReferencedPairs:
    ids, chosen, rejected, first, second, _ = pairs
    return ReferencedPairs(ids, rejected, chosen, second, first)


def crossed(pairs: ReferencedPairs) -> ReferencedPairs:
    """With the rejected completions in the opposite order: the two sides differ in length."""
    return pairs._replace(
        rejected=pairs.rejected[::-1], reference_rejected=pairs.reference_rejected.flip(0)
    )


def lengths_of(some: list[Encoded]) -> torch.Tensor:
    return torch.tensor([len(one.completion) for one in some])


def train(tiny: Path, pairs: ReferencedPairs, params: Params, **changes: Any) -> Any:
    """(policy, trained, figures) of a short run; `beta`, `held_out` and callbacks by name."""
    objective: Objective | None = changes.pop("objective", None)
    options = {name: changes.pop(name) for name in ("show_samples",) if name in changes}
    held_out, beta = changes.pop("held_out", pairs), changes.pop("beta", 0.1)
    policy = changes.pop("policy", None) or load_policy(tiny)
    precision, rate = changes.pop("precision", "float32"), changes.pop("rate", 1e-3)
    settings = params.dpo.training.model_copy(update={**QUICK, "epochs": 4.0, **changes})
    trained, figures = train_dpo(
        prepare(policy, settings, pad=0), pairs, held_out, settings, label="dpo",
        objective=objective or dpo_objective(settings, beta), peak_rate=rate, seed=0,
        precision=precision, fingerprint=repr(changes), **options,
    )  # fmt: skip
    return policy, trained, figures


def weights(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}


def test_it_starts_at_ln_2_and_prefers_what_is_preferred(tiny: Path, params: Params) -> None:
    _, trained, figures = train(tiny, pairs_of(tiny), params)
    first, last = trained.metrics[0], trained.metrics[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["grad_weight"] == pytest.approx(0.5, abs=1e-5)
    assert first["rewards/margin"] == pytest.approx(0, abs=1e-4)
    assert last["loss"] < first["loss"] - 0.1
    assert last["rewards/accuracy"] == 1
    assert figures["eval/rewards/margin"] > 0
    assert set(first) >= {
        "loss", "rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy",
        "logps/chosen", "logps/rejected", "grad_weight", "grad_norm", "learning_rate",
    }  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_micro_batches_do_not_change_the_steps(tiny: Path, params: Params, optimizer: str) -> None:
    found = []
    pairs = pairs_of(tiny)
    for budget in (1, 60, 10_000):
        changes = {"micro_batch_tokens": budget, "epochs": 1.0, "optimizer": optimizer}
        _, trained, _ = train(tiny, pairs, params, **changes)
        found.append([(row["loss"], row["grad_norm"]) for row in trained.metrics])
    for other in found[1:]:
        assert other[0] == pytest.approx(found[0][0], rel=1e-5)
        # Later steps hold the difference that Adam makes of rounding, g / sqrt(g^2) at g near 0.
        for ours, theirs in zip(found[0], other, strict=True):
            assert ours == pytest.approx(theirs, rel=2e-3)


def test_batches_of_prompts_take_the_step_of_the_same_pairs(tiny: Path, params: Params) -> None:
    pairs = every_pair_of(tiny, prompts=3, completions=4)
    found = {}
    for batch_of, size in (("pairs", 18), ("prompts", 3)):
        changes = {"batch_of": batch_of, "batch_size": size, "epochs": 1.0}
        _, trained, figures = train(tiny, pairs, params, **changes)
        found[batch_of] = trained.metrics, figures
    (alone,), figures = found["pairs"]
    (together,), others = found["prompts"]
    for name in ("loss", "rewards/margin", "logps/chosen", "grad_norm"):
        assert together[name] == pytest.approx(alone[name], rel=1e-5, abs=1e-6)
    # Adam makes much of gradients near 0, so the weights agree less well than the gradient does.
    assert others == pytest.approx(figures, rel=1e-3)
    lengths = {(tuple(s.prompt), tuple(s.completion)): s.length for s in pairs.chosen}
    lengths |= {(tuple(s.prompt), tuple(s.completion)): s.length for s in pairs.rejected}
    assert together["tokens"] == sum(lengths.values()) < alone["tokens"]
    # Packed, a prompt of two tokens is computed once for its four completions, or for a pair's two.
    assert together["tokens"] - together["computed_tokens"] == 3 * (4 - 1) * 2
    assert alone["tokens"] - alone["computed_tokens"] == 18 * (2 - 1) * 2


def every_pair_of(tiny: Path, prompts: int, completions: int) -> ReferencedPairs:
    """All pairs of a few completions of each prompt, in an order that mixes the prompts."""
    drawn = [Encoded([1, 30 + n % prompts], s.completion) for n, s in enumerate(
        sequences(prompts * completions, True))]  # fmt: skip
    logps = all_sequences(Scorer(load_policy(tiny), pad=0), drawn, budget=200, precision="float32")
    pairs = [
        (one, other)
        for one in range(len(drawn))
        for other in range(one)
        if drawn[one].prompt == drawn[other].prompt
    ]
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    return ReferencedPairs(
        [f"pair-{one}-{other}" for one, other in pairs],
        [drawn[i] for i in first], [drawn[i] for i in second], logps[first], logps[second],
    )  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{}, {"loss": "sppo_hard"}, {"loss": "simpo", "margin": 0.3}, {"sft_weight": 0.5}],
)
def test_chances_weigh_the_losses_of_both_labels(
    tiny: Path, params: Params, changes: dict[str, Any]
) -> None:
    pairs, settings = crossed(pairs_of(tiny, 8)), params.dpo.training.model_copy(update=changes)
    objective = dpo_objective(settings, 0.5)
    logps = torch.randn(16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logps = logps - 30

    def losses(some: ReferencedPairs, sides: torch.Tensor) -> torch.Tensor:
        return pair_metrics(sides, some, list(range(8)), settings, objective)[0]

    turned = losses(swapped(pairs), logps.view(-1, 2).flip(1).reshape(-1))
    mean = 0.75 * losses(pairs, logps) + 0.25 * turned
    found = losses(pairs._replace(chances=torch.full((8,), 0.75)), logps)
    torch.testing.assert_close(found, mean)
    slopes = [torch.autograd.grad(one.sum(), logps, retain_graph=True)[0] for one in (found, mean)]
    torch.testing.assert_close(*slopes)
    assert not torch.allclose(found, losses(pairs, logps))


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "simpo", "margin": 0.3},
        {"loss": "sigmoid", "length_normalised": True},
        {"loss": "ipo", "length_normalised": True},
        {"sft_weight": 0.7},
    ],
    ids=["simpo", "sigmoid", "ipo", "sft"],
)
def test_the_loss_is_given_each_completion_s_own_length(
    tiny: Path, params: Params, changes: dict[str, Any]
) -> None:
    pairs, settings = crossed(pairs_of(tiny, 8)), params.dpo.training.model_copy(update=changes)
    members = [5, 1, 2, 6]
    logps = torch.randn(8, generator=torch.Generator().manual_seed(0)) - 30
    chosen, rejected = logps.view(-1, 2).unbind(1)
    lengths = [lengths_of([side[i] for i in members]) for side in (pairs.chosen, pairs.rejected)]
    assert (lengths[0] != lengths[1]).all() and len(set(lengths[0].tolist())) == 4
    expected = dpo_loss(
        chosen, rejected, pairs.reference_chosen[members], pairs.reference_rejected[members],
        beta=0.5, loss=settings.loss, length_normalised=settings.length_normalised,
        chosen_lengths=lengths[0], rejected_lengths=lengths[1], margin=settings.margin,
    )  # fmt: skip
    nll = -chosen / lengths[0]
    found = dict(
        zip(
            METRICS,
            pair_metrics(logps, pairs, members, settings, dpo_objective(settings, 0.5)),
            strict=True,
        )
    )
    torch.testing.assert_close(found["loss"], expected.losses + settings.sft_weight * nll)
    torch.testing.assert_close(found["rewards/chosen"], expected.chosen_rewards)
    torch.testing.assert_close(found["rewards/rejected"], expected.rejected_rewards)
    torch.testing.assert_close(found["nll/chosen"], nll)


@pytest.mark.parametrize("world", [2, 3])
def test_shares_hold_every_pair_once_in_as_many_batches(tiny: Path, world: int) -> None:
    scorer = Scorer(load_policy(tiny), pad=0)
    for count in (1, 2, 24):
        pairs = pairs_of(tiny, count)
        groups = [pairs.tree([i]).sequences for i in range(count)]
        shares = [share(scorer, groups, 60, rank, world) for rank in range(world)]
        assert len({len(batches) for batches in shares}) == 1
        seen = [i for batches in shares for members, counts in batches if counts for i in members]
        assert sorted(seen) == list(range(count))
        loads = [sum(scorer.cost(groups[i]) for b, c in s if c for i in b) for s in shares]
        assert max(loads) - min(loads) <= max(scorer.cost(group) for group in groups)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_and_is_the_loss_of_its_pairs(
    tiny: Path, params: Params, loss: str
) -> None:
    pairs = pairs_of(tiny)
    _, trained, figures = train(tiny, pairs, params, loss=loss, beta=0.5, rate=2e-4)
    expected = dpo_loss(
        pairs.reference_chosen, pairs.reference_rejected,
        pairs.reference_chosen, pairs.reference_rejected, beta=0.5, loss=loss,
        chosen_lengths=lengths_of(pairs.chosen), rejected_lengths=lengths_of(pairs.rejected),
    ).losses.mean()  # fmt: skip
    if loss != "simpo":  # without a reference each pair starts elsewhere
        assert trained.metrics[0]["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert figures["eval/loss"] < 0.9 * trained.metrics[0]["loss"]


def unlikelihood(alpha: float) -> Objective:
    def objective(*pairs: torch.Tensor) -> DPOLoss:
        return unlikelihood_loss(*pairs[:4], alpha=alpha)

    return objective


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_unlikelihood_is_trained_like_any_loss_from_the_reference(
    tiny: Path, params: Params, alpha: float
) -> None:
    pairs = pairs_of(tiny)
    changes = {"objective": unlikelihood(alpha), "batch_size": 24, "rate": 2e-4}
    with pytest.raises(UserError, match="not that of this model"):
        other = pairs._replace(reference_rejected=pairs.reference_rejected + 1)
        train(tiny, other, params, **changes)
    _, trained, figures = train(tiny, pairs, params, **changes)
    first, last = trained.metrics[0], trained.metrics[-1]
    expected = (alpha * pairs.reference_rejected - pairs.reference_chosen).mean()
    assert first["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert first["rewards/margin"] == pytest.approx(0, abs=1e-3)
    assert figures["eval/logps/chosen"] > first["logps/chosen"] + 1
    assert figures["eval/loss"] < first["loss"] - 1
    # The rewards are log-ratios: beta is 1.
    moved = figures["eval/logps/chosen"] - float(pairs.reference_chosen.mean())
    assert figures["eval/rewards/chosen"] == pytest.approx(moved, rel=1e-3)
    assert last["rewards/margin"] > first["rewards/margin"]


def test_the_sft_term_is_added_a_token(tiny: Path, params: Params) -> None:
    pairs = pairs_of(tiny)
    _, plain, _ = train(tiny, pairs, params, batch_size=24)
    _, with_term, _ = train(tiny, pairs, params, batch_size=24, sft_weight=0.7)
    first, also = plain.metrics[0], with_term.metrics[0]
    assert also["loss"] == pytest.approx(first["loss"] + 0.7 * first["nll/chosen"], rel=1e-6)
    nll = (-pairs.reference_chosen / lengths_of(pairs.chosen)).mean()
    assert first["nll/chosen"] == pytest.approx(float(nll), rel=1e-5)
    assert with_term.metrics[-1]["nll/chosen"] < plain.metrics[-1]["nll/chosen"]


def test_a_reference_of_another_model_is_refused(tiny: Path, params: Params) -> None:
    pairs = pairs_of(tiny)
    moved = pairs.reference_chosen.clone()
    moved[5] += 1
    with pytest.raises(UserError, match="not that of this model"):
        train(tiny, pairs._replace(reference_chosen=moved), params, batch_size=24)
    with pytest.raises(UserError, match="not ln 2"):
        train(tiny, pairs._replace(reference_chosen=pairs.reference_chosen + 1), params)


def test_a_loss_that_is_not_finite_names_the_pair_the_step_and_the_way_back(
    tiny: Path, params: Params
) -> None:
    pairs = pairs_of(tiny)
    broken = pairs.reference_rejected.clone()
    broken[3] = math.nan
    with pytest.raises(UserError, match=r"loss.*step \d.*pair-3\b"):
        train(tiny, pairs._replace(reference_rejected=broken), params, checkpoint_seconds=1e-9)


def test_evaluation_every_n_steps_and_stopping_early_on_the_held_out_loss(
    tiny: Path, params: Params
) -> None:
    pairs = pairs_of(tiny)
    _, trained, figures = train(tiny, pairs, params, eval_every=3)
    with_eval = [row["step"] + 1 for row in trained.metrics if "eval/loss" in row]
    assert with_eval == [3, 6, 9, 12]
    assert trained.metrics[-1]["eval/loss"] == figures["eval/loss"]
    assert trained.best_step is None
    # Held-out pairs that prefer the opposite: every step makes it worse, the first was the best.
    changes = {"eval_every": 1, "patience": 3, "held_out": swapped(pairs)}
    policy, stopped, worse = train(tiny, pairs, params, **changes)
    assert len(stopped.metrics) == 4
    assert stopped.best_step == 0
    assert worse["eval/loss"] == pytest.approx(stopped.metrics[0]["eval/loss"], rel=1e-6)
    once, _, _ = train(tiny, pairs, params, epochs=1 / 3)
    assert all(torch.equal(weights(policy)[n], w) for n, w in weights(once).items())


def test_looking_at_samples_or_held_out_pairs_changes_nothing(tiny: Path, params: Params) -> None:
    """Adapters with dropout draw random numbers in training; so do samples."""
    pairs, seen = pairs_of(tiny), []
    dropout = LORA.model_copy(update={"dropout": 0.2})

    def run(**changes: Any) -> Any:
        policy = load_policy(tiny)
        add_adapters(policy, dropout, seed=0)
        torch.manual_seed(0)
        engine = HFEngine(policy, load_tokenizer(tiny), 2)

        def show(step: int) -> None:
            seen.append((step, engine.generate([Request([1, 30], 1.0, n, 5) for n in range(2)])))

        train(tiny, pairs, params, policy=policy, show_samples=show, **changes)
        return policy

    plain, looked = run(), run(sample_every=5, eval_every=2)
    assert [step for step, _ in seen] == [5, 10]
    assert any(completion.token_ids for _, drawn in seen for completion in drawn)
    assert all(torch.equal(weights(looked)[name], w) for name, w in weights(plain).items())


@pytest.mark.parametrize("adapters", [None, LORA])
def test_gradient_checkpointing_changes_nothing(
    tiny: Path, params: Params, adapters: LoRASettings | None
) -> None:
    rows = []
    for on in (False, True):
        policy = load_policy(tiny)
        if adapters:
            add_adapters(policy, adapters, seed=0)
        changes = {"gradient_checkpointing": on, "policy": policy, "epochs": 1.0}
        _, trained, _ = train(tiny, pairs_of(tiny), params, **changes)
        rows.append([(row["loss"], row["grad_norm"]) for row in trained.metrics])
    for off, checkpointed in zip(*rows, strict=True):
        assert checkpointed == pytest.approx(off, rel=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_layers_give_the_same_steps(tiny: Path, params: Params) -> None:
    rows = []
    for on in (False, True):
        _, trained, _ = train(tiny, pairs_of(tiny), params, compile=on, epochs=1.0)
        rows.append([(row["loss"], row["grad_norm"]) for row in trained.metrics])
    for plain, compiled in zip(*rows, strict=True):
        assert compiled == pytest.approx(plain, rel=1e-4)


def test_bfloat16_keeps_float32_weights_and_comes_close(tiny: Path, params: Params) -> None:
    pairs = pairs_of(tiny)
    _, exact, _ = train(tiny, pairs, params)
    scorer = Scorer(load_policy(tiny), pad=0)
    reference = [
        all_sequences(scorer, side, budget=200, precision="bfloat16")
        for side in (pairs.chosen, pairs.rejected)
    ]
    near = pairs._replace(reference_chosen=reference[0], reference_rejected=reference[1])
    policy, trained, _ = train(tiny, near, params, precision="bfloat16")
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert trained.metrics[0]["loss"] == pytest.approx(math.log(2), abs=0.02)
    assert trained.metrics[-1]["loss"] == pytest.approx(exact.metrics[-1]["loss"], abs=0.1)


def test_lora_trains_adapters_alone_and_exports_one_plain_model(
    tiny: Path, params: Params, tmp_path: Path
) -> None:
    pairs = pairs_of(tiny)
    base = weights(load_policy(tiny))
    policy = load_policy(tiny)
    add_adapters(policy, LORA, seed=0)
    assert adapters(policy)
    trainable = [p for p in policy.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trainable) < 0.2 * sum(w.numel() for w in base.values())
    _, trained, figures = train(tiny, pairs, params, policy=policy, rate=2e-2)
    assert trained.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert figures["eval/rewards/accuracy"] > 0.9
    tuned = all_sequences(Scorer(policy, pad=0), pairs.chosen, budget=200, precision="float32")
    assert (tuned - pairs.reference_chosen).abs().max() > 0.1
    merge_adapters(policy)
    assert set(weights(policy)) == set(base)
    policy.save_pretrained(tmp_path / "merged")
    plain = Scorer(load_policy(tmp_path / "merged"), pad=0)
    merged = all_sequences(plain, pairs.chosen, budget=200, precision="float32")
    torch.testing.assert_close(merged, tuned, rtol=1e-5, atol=1e-4)


def test_adapters_of_a_shared_embedding_are_refused(tiny: Path) -> None:
    for name in ("lm_head", "embed_tokens"):
        with pytest.raises(UserError, match="shares"):
            add_adapters(load_policy(tiny), LORA.model_copy(update={"targets": [name]}), seed=0)


def test_held_out_pairs_that_are_not_finite_in_the_end_are_named(
    tiny: Path, params: Params
) -> None:
    pairs = pairs_of(tiny)
    broken = pairs.reference_rejected.clone()
    broken[3] = math.nan
    with pytest.raises(UserError, match=r"eval/loss.*pair-3\b"):
        train(tiny, pairs, params, held_out=pairs._replace(reference_rejected=broken))


def test_adapters_that_fit_no_layer_are_refused(tiny: Path) -> None:
    nowhere = LORA.model_copy(update={"targets": ["nothing_like_it"]})
    with pytest.raises(UserError, match="targets"):
        add_adapters(load_policy(tiny), nowhere, seed=0)


def test_a_prompt_shared_by_unequal_sides_is_computed_once(tiny: Path) -> None:
    """The trainer's groups are pairs: two completions of one prompt."""
    pairs = pairs_of(tiny)
    scorer = Scorer(load_policy(tiny), pad=0)
    group = pairs.tree([3]).sequences
    assert group == [pairs.chosen[3], pairs.rejected[3]]
    assert scorer.cost(group) == sum(s.length for s in group) - len(group[0].prompt)
    assert Encoded([1, 33], group[0].completion) == group[0]
