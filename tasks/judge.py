"""Stage `judge`: what the judge makes of the controls, and of every pair -> out/judgements.

A judge by score is asked about the controls alone: it decides the pairs by the samples' columns.
A language model's answers are kept in `.local/judge`, which neither `make clean` nor another run
removes: nothing is asked and paid for twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from numpy.typing import ArrayLike

from betaflow.config import CompareSettings, Params, load_params
from betaflow.errors import UserError
from betaflow.evaluation.controls import LABEL, Score, control_pairs
from betaflow.evaluation.judges import score_judge
from betaflow.evaluation.templates import read_template
from betaflow.io import atomic_directory, write_json
from betaflow.report.estimates import JUDGES, SFT
from betaflow.report.inputs import read_arms, read_samples, read_table
from betaflow.report.judgements import (
    compared_pairs,
    control_samples,
    judgements,
    no_pairs,
    verdict_table,
)
from betaflow.report.table import tidy
from tasks._main import run, set_threads

FOLDER = Path("out/judgements")
KEPT = Path(".local/judge")
BATCH = 64


def main() -> None:
    """Ask, count, write; say what the controls found."""
    params = load_params()
    settings, label = params.compare, LABEL
    if settings.judge == "llm" and settings.llm is not None:
        label = read_template(settings.llm.template).label
        sweep = read_arms()
        samples = read_samples(sweep)
        compared, sft, scores = compared_pairs(sweep, samples), samples[SFT], {}
    else:
        compared, sft = no_pairs(), read_table(Path("out/samples/sft.parquet"))
        scores = {JUDGES[settings.judge]: _score(params)}
    controls = control_pairs(control_samples(sft), scores, label)
    verdicts, usage = judge(pd.concat([compared, controls], ignore_index=True), settings)
    if verdicts["preference"].isna().all():
        raise UserError(
            f"the judge gave no verdict on any of {len(verdicts)} pairs "
            f"({', '.join(sorted(set(verdicts['missing'])))}); its answers are in {KEPT}"
        )
    document = judgements(compared, controls, verdicts, settings) | {"usage": usage}
    with atomic_directory(FOLDER) as folder:
        verdict_table(compared, verdicts).to_parquet(folder / "verdicts.parquet", index=False)
        write_json(folder / "summary.json", tidy(document))
    _tell(document)


def judge(
    pairs: pd.DataFrame, settings: CompareSettings
) -> tuple[pd.DataFrame, dict[str, object] | None]:
    """Verdicts of `compare.judge`, and what its answers took if it is a language model.

    That is printed too, also where an error ends it.
    """
    if settings.judge != "llm" or settings.llm is None:
        return score_judge(JUDGES[settings.judge])(pairs), None
    # Not at the top: without a language model there is no need of an HTTP client.
    from betaflow.evaluation.llm_judge import LLMJudge

    model = LLMJudge(settings.llm, KEPT)
    try:
        verdicts = model(pairs)
    finally:
        for name, one in (("judge", model.usage), ("of them now", model.usage_now)):
            spend = "" if one.spend is None else f", spend {one.spend:.4g}"
            tokens = f"{one.prompt_tokens:,} + {one.completion_tokens:,} tokens"
            print(f"{name}: {one.answers:,} answers, {tokens}{spend}", flush=True)
    return verdicts, model.usage._asdict()


def _score(params: Params) -> Score:
    """What scores an answer that no arm gave, as `sample` scores the arms'."""
    if params.compare.judge == "gold":
        from betaflow.worlds.sentiment import gold_reward

        return lambda prompts, texts: [
            gold_reward(prompt + text) for prompt, text in zip(prompts, texts, strict=True)
        ]
    return lambda prompts, texts: _reward_model_scores(params, prompts, texts)


def _reward_model_scores(params: Params, prompts: Sequence[str], texts: Sequence[str]) -> ArrayLike:
    """The reward model's scores of finished completions, cut as the arms' are."""
    from betaflow.data.tokenise import Encoded, encode
    from betaflow.policy.loading import load_reward_model, load_tokenizer
    from betaflow.policy.rewards import all_sequence_scores

    set_threads(params.sample.threads)
    trust = params.model.trust_remote_code
    tokenizer = load_tokenizer("out/sft", trust_remote_code=trust)
    scorer = load_reward_model("out/reward", trust_remote_code=trust).eval()
    whole = [encode(tokenizer, *pair) for pair in zip(prompts, texts, strict=True)]
    scores = all_sequence_scores(
        scorer,
        [Encoded(one.prompt, one.completion[: params.sample.max_new_tokens]) for one in whole],
        pad=tokenizer.pad_token_id,
        batch_size=BATCH,
        precision=params.model.precision,
    )
    return scores.numpy().astype("float64")


def _tell(document: dict[str, object]) -> None:
    controls = document["controls"]
    assert isinstance(controls, dict)
    for row in controls["rows"]:
        verdict = {True: "passed", False: "FAILED", None: "not measured"}[row["passed"]]
        print(f"{row['control']}: {row['estimate']:.1%} of {row['pairs']} pairs, {verdict}")


if __name__ == "__main__":
    run(main)
