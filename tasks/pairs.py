"""Stage `pairs`: preference pairs -> out/pairs.

Sampled: completions of labelled prompts under pi_ref, paired within a prompt, labelled by
Bradley-Terry under the gold reward. Human: the pairs of out/data, rendered with the model's
chat template.
"""

from __future__ import annotations

from betaflow.config import load_params
from betaflow.data.pairs import human_pairs, sampled_pairs
from betaflow.io import atomic_directory, read_jsonl, write_json, write_jsonl
from betaflow.policy.loading import load_tokenizer
from tasks._inputs import prompt_rows
from tasks._main import run, set_threads


def main() -> None:
    """Write `train.jsonl`, `eval.jsonl` and `statistics.json`."""
    params = load_params()
    set_threads(params.pairs.threads)
    trust = params.model.trust_remote_code
    tokenizer = load_tokenizer("out/sft", trust_remote_code=trust)
    statistics = {}
    with atomic_directory("out/pairs") as folder:
        if params.pairs.source == "sampled":
            from betaflow.sampling.engine import open_engine
            from betaflow.worlds.sentiment import gold_reward

            engine = open_engine(
                params.pairs.engine,
                "out/sft",
                threads=params.pairs.threads,
                batch_size=256,
                trust_remote_code=trust,
            )
            for split in ("train", "eval"):
                prompts = prompt_rows(tokenizer, f"prompts_{split}", params.pairs.max_prompt_tokens)
                rows, statistics[split] = sampled_pairs(prompts, engine, gold_reward, params.pairs)
                write_jsonl(folder / f"{split}.jsonl", rows)
        else:
            for split in ("train", "eval"):
                given = read_jsonl(f"out/data/pairs_{split}.jsonl")
                rows, statistics[split] = human_pairs(given, tokenizer, params.pairs)
                write_jsonl(folder / f"{split}.jsonl", rows)
        write_json(folder / "statistics.json", statistics)
    for split, figures in statistics.items():
        print(f"{split}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))


if __name__ == "__main__":
    run(main)
