"""Stage `unlabelled-fresh`: pairs drawn anew from pi_ref for every prompt -> out/unlabelled.

They are unlabelled: which completion is called chosen is a coin's choice. Each policy of the
experiment takes those of the prompts whose labels it has not, and has them labelled by a model.
Drawn once a seed, for all shares and both labellers, with the reference's log-probabilities.
"""

from __future__ import annotations

import argparse

from betaflow.config import fresh_pairs_dir, load_params
from betaflow.data.pairs import sampled_pairs
from betaflow.data.tokenise import Limits
from betaflow.io import atomic_directory, write_jsonl
from betaflow.policy.loading import load_policy, load_tokenizer
from betaflow.policy.scorer import Scorer
from betaflow.sampling.parity import release
from tasks._arguments import grid_arguments
from tasks._inputs import encode_pairs, training_prompts
from tasks._main import run, set_threads
from tasks.pairs import reference_engine
from tasks.reference import reference_table

APART = 1_000_003  # between the seeds of these draws and those of `pairs`


def main(arguments: argparse.Namespace | None = None) -> None:
    """Draw as `pairs` says, with draws of its own, and score; write `pairs.jsonl` and a table."""
    params = load_params()
    given = arguments or grid_arguments(__doc__, ("seed",))
    set_threads(params.pairs.threads)
    trust = params.model.trust_remote_code
    tokenizer = load_tokenizer("out/sft", trust_remote_code=trust)
    prompts = training_prompts(tokenizer, params.pairs.max_prompt_tokens)
    settings = params.pairs.model_copy(update={"seed": params.pairs.seed + APART + given.seed})
    engine = reference_engine(params, tokenizer)
    # All the same reward: a fair coin labels them.
    found, figures = sampled_pairs(prompts, engine, lambda _: 0.0, settings)
    rows = [{k: v for k, v in row.items() if not k.endswith("_reward")} for row in found]
    release(engine)
    policy = load_policy("out/sft", trust_remote_code=trust).eval()
    scorer = Scorer(policy, tokenizer.pad_token_id)
    chosen, rejected = encode_pairs(tokenizer, rows, Limits.of(params.pairs))
    with atomic_directory(fresh_pairs_dir(given.seed)) as folder:
        write_jsonl(folder / "pairs.jsonl", rows)
        table = reference_table(scorer, rows, chosen, rejected, params, label="fresh-reference")
        table.to_parquet(folder / "reference.parquet", index=False)
    print(f"{figures['pairs']} fresh pairs of {figures['prompts']} prompts")


if __name__ == "__main__":
    run(main, parses=True)
