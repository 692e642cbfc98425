"""The looks at every arm, scored: the start's own is made, and the rewards that no arm measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from betaflow.config import Params
from betaflow.data.tokenise import Encoded
from betaflow.evaluation.curve import Probe, probe
from betaflow.policy.loading import load_policy, load_reward_model, load_tokenizer
from betaflow.policy.rewards import all_sequence_scores
from betaflow.progress import track
from betaflow.report.curves import Looks
from betaflow.sampling.hf_engine import HFEngine
from tasks._curve import BATCH, held_out_probe

START = ""  # the name of the start's look among the arms'

Score = Callable[[pd.DataFrame], pd.DataFrame]


def scored_looks(params: Params, curves: Mapping[str, pd.DataFrame]) -> Looks:
    """Look at the reference as the arms were looked at, and score every draw.

    Args:
        curves: by arm name, its `curve.parquet`.
    """
    trust = params.model.trust_remote_code
    tokenizer = load_tokenizer("out/sft", trust_remote_code=trust)
    asked = held_out_probe(params, tokenizer)
    reference = load_policy("out/sft", trust_remote_code=trust).eval()
    start = probe(reference, reference, HFEngine(reference, tokenizer, BATCH), asked)
    score, second = _scores(params, asked, tokenizer)
    found, done = {}, 0
    tables = {START: start, **curves}
    with track(sum(map(len, tables.values())), "overoptimisation", "draw") as progress:
        for name, table in tables.items():
            found[name] = score(table)
            done += len(table)
            progress.update(done)
    return Looks(found.pop(START), found, second)


def _scores(
    params: Params, asked: Probe, tokenizer: Any
) -> tuple[Score, dict[str, float | int] | None]:
    """What adds the rewards that were not measured, NaN if not known; facts of the second gold."""
    reward = load_reward_model(
        "out/reward", trust_remote_code=params.model.trust_remote_code
    ).eval()
    prompts = {row["id"]: row for row in asked.prompts}
    judge, about = None, None
    if params.data.source == "world":
        from betaflow.worlds.second_score import second_score

        second = second_score(params.data.seed)
        judge, about = second.score, second._asdict()
        del about["score"]

    def score(table: pd.DataFrame) -> pd.DataFrame:
        own = [prompts[name] for name in table["prompt_id"]]
        sequences = [
            Encoded(row["ids"], list(tokens))
            for row, tokens in zip(own, table["token_ids"], strict=True)
        ]
        scores = all_sequence_scores(
            reward,
            sequences,
            pad=tokenizer.pad_token_id,
            batch_size=BATCH,
            precision=params.model.precision,
        )
        texts = [r["text"] + c for r, c in zip(own, table["completion"], strict=True)]
        return table.assign(
            reward_model=scores.tolist(),
            second_gold=np.nan if judge is None else judge(texts),
            gold_reward=table.get("gold_reward", np.nan),
        )

    return score, about
