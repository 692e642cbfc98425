"""Stage `best_of_n`: the best of n of the reference's draws, by a scorer -> out/samples.

Seed number k of `sample` chooses among draws k n to (k + 1) n - 1 of `optimum`, so no two seeds
share a draw. Of equals the first is the best.
"""

from __future__ import annotations

import argparse
from typing import get_args

import pandas as pd

from betaflow.config import Arm, Params, Scorer, load_params
from betaflow.errors import UserError
from betaflow.evaluation.best_of_n import best_of_n_kl
from betaflow.io import atomic_file
from tasks._main import run

SCORES = {"gold": "gold_reward", "reward_model": "reward_model"}
COLUMNS = ["prompt_id", "domain", "prompt", "temperature", "seed", "completion", "finish_reason"]
COLUMNS += ["completion_tokens", "logprob", "policy_logprob", "reference_logprob", "kl"]
COLUMNS += ["reward_model", "gold_reward"]


def main(arguments: argparse.Namespace | None = None) -> None:
    """Choose, and write what `sample` writes of a model."""
    params = load_params()
    given = arguments or _arguments()
    arm = Arm(method="best_of_n", scorer=given.scorer, n=given.n)
    frame = chosen(params, given.scorer, given.n)
    with atomic_file(f"out/samples/{arm.name}.parquet") as path:
        frame.to_parquet(path, index=False)
    print(f"{arm.name}: mean {given.scorer} reward {frame[SCORES[given.scorer]].mean():.3f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    about = "by which the best is chosen"
    parser.add_argument("--scorer", required=True, choices=get_args(Scorer), help=about)
    parser.add_argument("--n", required=True, type=int, help="draws it is chosen among")
    return parser.parse_args()


def chosen(params: Params, scorer: str, n: int) -> pd.DataFrame:
    """A row for each seed and prompt, with `COLUMNS`; `kl` is `best_of_n_kl`, a bound."""
    seeds = params.sample.seeds
    needed = [("draw", "<", n * len(seeds))]
    draws = pd.read_parquet("out/optimum/draws.parquet", filters=needed)
    if len(draws) != n * len(seeds) * draws["prompt_id"].nunique() or draws.empty:
        raise UserError("out/optimum has too few draws; run `dvc repro optimum`")
    ranked = draws.sort_values(SCORES[scorer], ascending=False, kind="stable")
    # In the draws' order again: prompt by prompt, and of each prompt seed by seed.
    best = ranked.groupby(["prompt_id", ranked["draw"] // n]).head(1).sort_index()
    prompts = pd.read_parquet("out/samples/sft.parquet", columns=["prompt_id", "domain", "prompt"])
    texts = prompts[prompts["domain"] == "in"].drop_duplicates("prompt_id").set_index("prompt_id")
    frame = best.assign(
        domain="in",
        prompt=texts["prompt"].reindex(best["prompt_id"]).to_numpy(),
        temperature=1.0,
        seed=[seeds[number] for number in best["draw"] // n],
        kl=best_of_n_kl(n),
        # It has no tractable probability of its own, and the reference's was not asked for.
        **dict.fromkeys(["logprob", "policy_logprob", "reference_logprob"], float("nan")),
    )
    if frame["prompt"].isna().any():
        raise UserError("out/optimum and out/samples/sft.parquet differ in their prompts")
    order = frame["seed"].map({seed: place for place, seed in enumerate(seeds)})
    frame = frame.iloc[order.argsort(kind="stable")].reset_index(drop=True)
    found: pd.DataFrame = frame[COLUMNS]
    return found


if __name__ == "__main__":
    run(main, parses=True)
