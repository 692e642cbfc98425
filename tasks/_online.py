"""An arm of online DPO: it draws its own pairs, and the gold reward labels them."""

from __future__ import annotations

import torch

from betaflow.config import Arm, Params
from betaflow.data.tokenise import Limits
from betaflow.errors import UserError
from betaflow.policy.loading import load_policy, load_tokenizer
from betaflow.policy.scorer import Scorer
from betaflow.sampling.engine import Completion
from betaflow.sampling.hf_engine import HFEngine
from betaflow.training.dpo import dpo_objective
from betaflow.training.online_dpo import train_online_dpo
from betaflow.training.prepare import prepare
from betaflow.worlds.sentiment import gold_reward
from tasks import tracking
from tasks._curve import collect, curve_probe
from tasks._inputs import stage_fingerprint, training_prompts
from tasks._main import set_threads
from tasks._pairs import fresh_policy, split_pairs, whole_policy
from tasks._training import finish

DRAWN_TOGETHER = 256  # completions
# Of `dpo.training`, what is of passes over given pairs.
OFFLINE = {"epochs", "batch_size", "batch_of", "eval_every", "patience", "sample_every"}


def train_online(params: Params, arm: Arm) -> None:
    """Train an arm on labelled and unlabelled prompts, and write it to its folder."""
    assert arm.seed is not None and arm.learning_rate is not None and arm.beta is not None
    settings, online = params.dpo.training, params.dpo.online
    set_threads(settings.threads)
    torch.manual_seed(arm.seed)  # of adapters' dropout
    trust = params.model.trust_remote_code
    tokenizer = load_tokenizer("out/sft", trust_remote_code=trust)
    limits = Limits.of(params.pairs)
    rows = training_prompts(tokenizer, params.pairs.max_prompt_tokens)
    if not rows:
        raise UserError("there is no prompt of at most pairs.max_prompt_tokens tokens in out/data")
    policy = fresh_policy(params, settings, arm.seed)
    reference = load_policy("out/sft", trust_remote_code=trust).eval()
    kept = {
        "training": settings.model_dump(exclude=OFFLINE),
        "online": online.model_dump(),
        "pairs": limits._asdict(),
        "curve": params.curve.model_dump(),
        "precision": params.model.precision,
    }
    identity = stage_fingerprint(arm.stage, {**kept, **arm.model_dump()}, arm.model_dump())
    about = {"arm": arm.name, **arm.model_dump(), "fingerprint": identity, "settings": kept}

    def reward(place: int, completion: Completion) -> float:
        return gold_reward(rows[place]["text"] + completion.text)

    with tracking.training_run(params, about) as log:
        trained, figures = train_online_dpo(
            prepare(policy, settings, pad=tokenizer.pad_token_id),
            Scorer(reference, tokenizer.pad_token_id),
            HFEngine(policy, tokenizer, DRAWN_TOGETHER),
            reward,
            [row["ids"] for row in rows],
            split_pairs(tokenizer, "eval", limits),
            settings,
            online,
            label=arm.name,
            objective=dpo_objective(settings, float(arm.beta)),
            peak_rate=float(arm.learning_rate),
            seed=arm.seed,
            precision=params.model.precision,
            fingerprint=identity,
            on_step=log.step,
            probe=curve_probe(params, arm.name, policy, policy, tokenizer, online.steps),
        )
        model = whole_policy(policy, params, settings, arm.seed)
        looks = {"curve.parquet": collect(arm.name, trained.metrics)}
        finish(arm.model_dir, model, tokenizer, trained, figures, about, log, tables=looks)
