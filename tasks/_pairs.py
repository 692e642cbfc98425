"""What the stages that train on preference pairs share: data, policy, and an arm's training.

With `dpo.training.processes` above 1 such a stage starts itself again under torchrun, once a
process. On several machines start torchrun there yourself, on its module; see docs/training.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch

from betaflow.config import Arm, DPOTraining, Params, UnlabelledArm
from betaflow.data.tokenise import Limits
from betaflow.errors import UserError
from betaflow.io import read_jsonl
from betaflow.policy.loading import load_policy, load_tokenizer
from betaflow.training.distributed import is_main, rank, whole, world
from betaflow.training.dpo import Objective, ReferencedPairs, train_dpo
from betaflow.training.loop import Trained, total_steps
from betaflow.training.prepare import prepare
from betaflow.training.trees import units
from tasks import tracking
from tasks._curve import about_looks, collect, curve_probe
from tasks._inputs import encode_pairs, stage_fingerprint
from tasks._main import set_threads
from tasks._processes import processes
from tasks._training import finish
from tasks.tracking import StepLog

if TYPE_CHECKING:
    from tasks._training import Table

SAMPLES = 2  # completions shown in the log every `sample_every` steps


def split_pairs(tokenizer: Any, split: str, limits: Limits) -> ReferencedPairs:
    """Pairs of a split with their cached reference log-probabilities."""
    rows = read_jsonl(f"out/pairs/{split}.jsonl")
    table = pd.read_parquet(f"out/reference/{split}.parquet")
    return referenced_pairs(tokenizer, rows, table, limits)


def referenced_pairs(
    tokenizer: Any, rows: list[dict[str, Any]], table: pd.DataFrame, limits: Limits
) -> ReferencedPairs:
    """Pairs with the reference's log-probabilities. Raises `UserError` if those are of others."""
    chosen, rejected = encode_pairs(tokenizer, rows, limits)
    ids = [row["id"] for row in rows]
    if ids != table["id"].tolist():
        raise UserError(
            "out/reference is not about the pairs in out/pairs; run `dvc repro reference`"
        )
    for name, sequences in (("chosen", chosen), ("rejected", rejected)):
        if table[f"{name}_tokens"].tolist() != [len(s.completion) for s in sequences]:
            raise UserError(
                "the reference was computed on other tokens than the policy is trained on; "
                "delete out/reference and run again"
            )
    return ReferencedPairs(
        ids,
        chosen,
        rejected,
        torch.tensor(table["chosen_logps"].to_numpy(), dtype=torch.float32),
        torch.tensor(table["rejected_logps"].to_numpy(), dtype=torch.float32),
    )


def fresh_policy(params: Params, settings: DPOTraining, seed: int) -> Any:
    """The reference's weights, with new adapters where the settings want them."""
    policy = load_policy("out/sft", trust_remote_code=params.model.trust_remote_code)
    if settings.lora is not None:
        from betaflow.policy.lora import add_adapters  # peft takes seconds to import

        add_adapters(policy, settings.lora, seed=seed)
    return policy


def whole_policy(trained: Any, params: Params, settings: DPOTraining, seed: int) -> Any:
    """The trained policy as one plain model: shards gathered, adapters merged.

    Every process must call this; only the main one gets a model that is whole.
    """
    policy = trained
    if world() > 1:
        gathered = ((name, whole(p).detach()) for name, p in trained.named_parameters())
        weights = {name: weight.cpu() for name, weight in gathered if is_main()}
        if not is_main():
            return None
        policy = fresh_policy(params, settings, seed)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                parameter.copy_(weights[name])
    if settings.lora is not None:
        from betaflow.policy.lora import merge_adapters

        merge_adapters(policy)
    return policy


def sample_printer(scorer: Any, tokenizer: Any, pairs: ReferencedPairs) -> Any:
    """Prints what the policy makes of a few held-out prompts, escaped, at T = 1."""
    from betaflow.sampling.engine import Request
    from betaflow.sampling.hf_engine import HFEngine

    prompts = list({tuple(s.prompt): s for s in pairs.chosen})[:SAMPLES]
    budget = max((len(s.completion) for s in pairs.chosen), default=64)
    engine = HFEngine(scorer, tokenizer, batch_size=SAMPLES)

    def show(step: int) -> None:
        requests = [
            Request(list(ids), 1.0, n, min(budget, engine.max_length - len(ids)))
            for n, ids in enumerate(prompts)
        ]
        for request, completion in zip(requests, engine.generate(requests), strict=True):
            prompt = tokenizer.decode(request.prompt_ids, skip_special_tokens=True)
            if is_main():
                print(f"step {step}: {prompt!r} -> {completion.text!r}", flush=True)

    return show


class PairData(NamedTuple):
    """Pairs to train on; pairs to evaluate on and to stop early by; tables by their file names."""

    pairs: ReferencedPairs
    held_out: ReferencedPairs
    tables: dict[str, pd.DataFrame]


ReadPairs = Callable[[Params, Any], PairData]  # with the tokenizer


def all_pairs(params: Params, tokenizer: Any) -> PairData:
    """Every pair of `out/pairs`."""
    limits = Limits.of(params.pairs)
    train, held_out = (split_pairs(tokenizer, split, limits) for split in ("train", "eval"))
    return PairData(train, held_out, {})


class Begun(NamedTuple):
    """An arm before its first step, and what is written of it: see `begin`."""

    policy: Any
    scorer: Any
    tokenizer: Any
    about: dict[str, Any]
    params: Params
    arm: Arm | UnlabelledArm
    settings: DPOTraining


def begin(
    params: Params, arm: Arm | UnlabelledArm, settings: DPOTraining, options: dict[str, Any]
) -> Begun:
    """Policy and identity of an arm that depends on some more `options`."""
    assert arm.seed is not None
    set_threads(settings.threads)
    torch.manual_seed(arm.seed + 1_000_003 * rank())  # of adapters' dropout
    policy = fresh_policy(params, settings, arm.seed)
    tokenizer = load_tokenizer("out/sft", trust_remote_code=params.model.trust_remote_code)
    kept = {
        **options,
        "pairs": Limits.of(params.pairs)._asdict(),
        **about_looks(params),
        "precision": params.model.precision,
    }
    identity = stage_fingerprint(arm.stage, {**kept, **arm.model_dump()}, arm.model_dump())
    about = {"arm": arm.name, **arm.model_dump(), "fingerprint": identity, "settings": kept}
    scorer = prepare(policy, settings, pad=tokenizer.pad_token_id)
    return Begun(policy, scorer, tokenizer, about, params, arm, settings)


def end(
    begun: Begun,
    trained: Trained,
    figures: dict[str, float],
    log: StepLog,
    tables: Mapping[str, Table],
) -> None:
    """Write a trained arm to its folder; every process must call this."""
    arm = begun.arm
    assert arm.seed is not None
    model = whole_policy(begun.policy, begun.params, begun.settings, arm.seed)
    if is_main():
        looks = {"curve.parquet": collect(arm.name, trained.metrics)}
        finish(
            arm.model_dir, model, begun.tokenizer, trained, figures, begun.about, log,
            tables=looks | dict(tables),
        )  # fmt: skip


def train_arm(
    params: Params,
    arm: Arm | UnlabelledArm,
    settings: DPOTraining,
    objective: Objective,
    *,
    options: dict[str, Any],
    read: ReadPairs = all_pairs,
    tables: Mapping[str, Table] | None = None,
) -> None:
    """Train an arm on pairs, in as many processes as set, and write it to its folder.

    Args:
        options: the settings that the arm depends on, for its identity and its record.
        read: what it is trained on, and evaluated.
        tables: as in `finish`, written beside the model as those of `read` are.
    """
    with processes(settings.processes):
        assert arm.seed is not None and arm.learning_rate is not None
        begun = begin(params, arm, settings, {"training": options})
        policy, scorer, tokenizer, about, *_ = begun
        pairs, held_out, read_too = read(params, tokenizer)
        count = len(units(pairs.chosen, settings.batch_of))
        steps = total_steps(count, settings.batch_size, settings.epochs)
        show = sample_printer(scorer, tokenizer, held_out) if settings.sample_every else None
        with tracking.training_run(params, about) if is_main() else nullcontext(StepLog()) as log:
            trained, figures = train_dpo(
                scorer,
                pairs,
                held_out,
                settings,
                label=arm.name,
                objective=objective,
                peak_rate=float(arm.learning_rate),
                seed=arm.seed,
                precision=params.model.precision,
                fingerprint=about["fingerprint"],
                on_step=log.step,
                show_samples=show,
                probe=curve_probe(
                    params, arm.name, policy, scorer if world() > 1 else policy, tokenizer, steps
                ),
            )
            end(begun, trained, figures, log, read_too | dict(tables or {}))
