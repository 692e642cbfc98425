"""What the experiment on unlabelled prompts learns from: kept pairs, and fresh ones, labelled."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd
import torch

from betaflow.config import Params, UnlabelledArm, fresh_pairs_dir, unlabelled_arm
from betaflow.data.labelled import kept_pairs
from betaflow.data.tokenise import Limits
from betaflow.io import read_jsonl
from betaflow.policy.loading import load_policy, load_reward_model
from betaflow.policy.packing import all_sequences
from betaflow.policy.rewards import all_sequence_scores
from betaflow.policy.scorer import Scorer
from betaflow.training.dpo import ReferencedPairs
from betaflow.training.relabel import joined, relabelled, selected, turned
from tasks._held_out import held_out_places
from tasks._pairs import PairData, referenced_pairs, split_pairs

SCORED_TOGETHER = 128  # completions a forward pass

Row = dict[str, Any]


class Material(NamedTuple):
    """What a policy learns from: places of the kept among all `pairs`, and those of `fresh` ones.

    The fresh pairs are those of every prompt that has no kept one; none where they are not used.
    """

    pairs: list[Row]
    kept: list[int]
    fresh: list[Row]
    used: list[int]


def material(arm: UnlabelledArm) -> Material:
    """Which pairs an arm learns from."""
    pairs = read_jsonl("out/pairs/train.jsonl")
    kept, prompts = kept_pairs(pairs, arm.labelled)
    if arm.method == "dpo":
        return Material(pairs, kept, [], [])
    fresh = read_jsonl(fresh_pairs_dir(arm.seed) / "pairs.jsonl")
    used = [place for place, row in enumerate(fresh) if row["prompt"] not in prompts]
    return Material(pairs, kept, fresh, used)


def read_pairs(params: Params, tokenizer: Any, arm: UnlabelledArm, found: Material) -> PairData:
    """An arm's pairs: the kept, and the fresh as a model of the kept labels them.

    With the fresh goes `labels.parquet`, a row each: `id`, `prompt`, the labeller's `margin` (its
    score of the chosen completion less that of the rejected, never below 0) and the `gold_margin`.
    """
    limits = Limits.of(params.pairs)
    kept = selected(split_pairs(tokenizer, "train", limits), found.kept)
    places = held_out_places(params, tokenizer, arm.labelled)
    held_out = selected(split_pairs(tokenizer, "eval", limits), places)
    if arm.method == "dpo":
        return PairData(kept, held_out, {})
    table = pd.read_parquet(fresh_pairs_dir(arm.seed) / "reference.parquet")
    fresh = selected(referenced_pairs(tokenizer, found.fresh, table, limits), found.used)
    score = _reward_model if arm.method == "dpo_reward_model" else _implicit_reward
    scores = score(params, tokenizer, arm, fresh)
    rows = [found.fresh[place] for place in found.used]
    labels = pd.DataFrame(
        {
            "id": fresh.ids,
            "prompt": [row["prompt"] for row in rows],
            "margin": (scores[0] - scores[1]).abs().double().numpy(),
            "gold_margin": [
                _gold_margin(params, row, turn)
                for row, turn in zip(rows, turned(scores), strict=True)
            ],
        }
    )
    return PairData(joined(kept, relabelled(fresh, scores)), held_out, {"labels.parquet": labels})


def _reward_model(
    params: Params, tokenizer: Any, arm: UnlabelledArm, pairs: ReferencedPairs
) -> torch.Tensor:
    """Scores, `(2, pairs)`, of the reward model that was trained on the kept pairs."""
    folder = unlabelled_arm(params, "reward", arm.labelled, arm.seed).model_dir
    model = load_reward_model(folder, trust_remote_code=params.model.trust_remote_code).eval()
    scores = all_sequence_scores(
        model,
        pairs.chosen + pairs.rejected,
        pad=tokenizer.pad_token_id,
        batch_size=SCORED_TOGETHER,
        precision=params.model.precision,
    )
    return scores.view(2, len(pairs.ids))


def _implicit_reward(
    params: Params, tokenizer: Any, arm: UnlabelledArm, pairs: ReferencedPairs
) -> torch.Tensor:
    """beta log(pi / pi_ref), `(2, pairs)`, of the policy that DPO made of the kept pairs."""
    assert arm.beta is not None
    folder = unlabelled_arm(params, "dpo", arm.labelled, arm.seed).model_dir
    policy = load_policy(folder, trust_remote_code=params.model.trust_remote_code).eval()
    logps = all_sequences(
        Scorer(policy, tokenizer.pad_token_id),
        pairs.chosen + pairs.rejected,
        budget=params.reference.micro_batch_tokens,
        precision=params.model.precision,
    )
    reference = torch.stack([pairs.reference_chosen, pairs.reference_rejected])
    return arm.beta * (logps.view(2, len(pairs.ids)) - reference)


def _gold_margin(params: Params, row: dict[str, Any], turn: bool) -> float:
    """Gold reward of what a label calls chosen less that of the other; NaN where there is none."""
    if params.data.source != "world":
        return float("nan")
    from betaflow.worlds.sentiment import gold_reward

    margin = gold_reward(row["prompt"] + row["chosen"]) - gold_reward(
        row["prompt"] + row["rejected"]
    )
    return -margin if turn else margin
