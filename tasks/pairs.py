"""Stage `pairs`: preference pairs -> out/pairs.

Sampled: completions of labelled prompts under pi_ref, paired within a prompt, labelled by
Bradley-Terry under the gold reward. Human: the pairs of out/data, rendered with the model's
chat template; rows keep their whole text, and stages that encode them cut what is too long.
"""

from __future__ import annotations

from typing import Any

from betaflow.config import Params, load_params
from betaflow.data.chat import render_text
from betaflow.data.pairs import human_pairs, sampled_pairs
from betaflow.data.tokenise import Encoded, encode_prompt
from betaflow.io import atomic_directory, read_jsonl, write_json, write_jsonl
from betaflow.policy.loading import load_tokenizer
from betaflow.sampling.engine import Engine, open_engine
from betaflow.sampling.parity import check_engine
from tasks._inputs import prompt_rows
from tasks._main import run, set_threads


def main() -> None:
    """Write `train.jsonl`, `eval.jsonl`, `text_eval.jsonl` and `statistics.json`."""
    params = load_params()
    set_threads(params.pairs.threads)
    trust = params.model.trust_remote_code
    tokenizer = load_tokenizer("out/sft", trust_remote_code=trust)
    statistics = {}
    with atomic_directory("out/pairs") as folder:
        if params.pairs.source == "sampled":
            from betaflow.worlds.sentiment import gold_reward

            engine = reference_engine(params, tokenizer)
            for split in ("train", "eval"):
                name, longest = f"prompts_{split}", params.pairs.max_prompt_tokens
                prompts = prompt_rows(tokenizer, name, longest)
                rows, statistics[split] = sampled_pairs(prompts, engine, gold_reward, params.pairs)
                dropped = len(read_jsonl(f"out/data/{name}.jsonl")) - len(prompts)
                statistics[split]["dropped_long_prompt"] = dropped
                write_jsonl(folder / f"{split}.jsonl", rows)
        else:
            for split in ("train", "eval"):
                given = read_jsonl(f"out/data/pairs_{split}.jsonl")
                rows, statistics[split] = human_pairs(given, tokenizer, params.pairs)
                write_jsonl(folder / f"{split}.jsonl", rows)
        held_out = read_jsonl("out/data/sft_eval.jsonl")
        texts = [{"text": render_text(tokenizer, row)} for row in held_out]
        write_jsonl(folder / "text_eval.jsonl", texts)  # for lm-eval's perplexity
        write_json(folder / "statistics.json", statistics)
    for split, figures in statistics.items():
        print(f"{split}: " + ", ".join(f"{key} {value}" for key, value in sorted(figures.items())))


def reference_engine(params: Params, tokenizer: Any) -> Engine:
    """The engine that draws from pi_ref, compared with Hugging Face on a few held-out texts."""
    trust = params.model.trust_remote_code
    engine = open_engine(
        params.pairs.engine,
        "out/sft",
        threads=params.pairs.threads,
        precision=params.model.precision,
        batch_size=256,
        trust_remote_code=trust,
    )
    rows = read_jsonl("out/data/sft_eval.jsonl")[:16]
    texts = [encode_prompt(tokenizer, render_text(tokenizer, row)) for row in rows]
    check_engine(
        engine,
        "out/sft",
        [Encoded(ids[:1], ids[1:]) for ids in texts if len(ids) > 1],
        tolerance=params.pairs.logprob_tolerance,
        trust_remote_code=trust,
    )
    return engine


if __name__ == "__main__":
    run(main)
