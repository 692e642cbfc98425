"""Do betaflow's length-controlled win rates rank systems as AlpacaEval's published ones do?

    git clone https://github.com/tatsu-lab/alpaca_eval
    .venv/bin/python -m benchmarks.length_ranking --results alpaca_eval/results --leaderboard \\
        alpaca_eval/src/alpaca_eval/leaderboards/data_AlpacaEval_2/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv

The judgements are not shipped with betaflow. Of every system that has both, `annotations.json` of
the judge and a published rate, it prints the two rates and how near the two orders are: Spearman's
and Kendall's rank correlation. Beside it, what plain win rates reach against the same published
order: the least that controlling for length must beat. Lengths are in characters, as AlpacaEval's.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from scipy.stats import kendalltau, spearmanr

from betaflow.errors import UserError
from betaflow.evaluation import length_controlled_win_rate, win_rate
from betaflow.progress import track

JUDGE = "weighted_alpaca_eval_gpt4_turbo"
PUBLISHED, PLAIN = "length_controlled_winrate", "win_rate"
RESAMPLES = 100  # the estimates, which are ranked, do not depend on them
FEWEST = 3  # systems of which an order says anything


class Judged(NamedTuple):
    """A system's verdicts against the baseline, and the two lengths, characters."""

    preferences: list[float]
    lengths: list[int]
    baseline_lengths: list[int]


def main() -> None:
    """Compute, compare, print."""
    given = arguments()
    published = read_leaderboard(given.leaderboard)
    found = {
        path.parents[1].name: path
        for path in sorted(given.results.glob(f"*/{given.judge}/annotations.json"))
        if path.parents[1].name in published.index
    }
    if len(found) < FEWEST:
        raise UserError(
            f"{given.results} has {len(found)} systems with {given.judge}/annotations.json that "
            f"{given.leaderboard} lists; an order needs {FEWEST}. Name AlpacaEval's `results` "
            "with --results, its leaderboard with --leaderboard, the judge's folders with --judge"
        )
    rows = []
    with track(len(found), "judgements", "system") as progress:
        for done, (name, path) in enumerate(found.items(), start=1):
            rows.append((name, *rates(read_judgements(path))))
            progress.update(done)
    table = pd.DataFrame(rows, columns=["system", "ours", "plain"]).set_index("system")
    table["published"] = published.loc[table.index, PUBLISHED] / 100
    table["published plain"] = published.loc[table.index, PLAIN] / 100
    table = table.sort_values("published", ascending=False)
    print(table.to_string(float_format="{:.3f}".format))
    print()
    for name in ("ours", "plain"):
        print(
            f"{name} against published, {len(table)} systems: "
            f"Spearman {spearmanr(table[name], table['published']).statistic:.4f}, "
            f"Kendall {kendalltau(table[name], table['published']).statistic:.4f}"
        )
    gap = (table["plain"] - table["published plain"]).abs()
    print(f"largest gap of plain to published plain (0: the same verdicts): {gap.max():.4f}")


def read_leaderboard(path: Path) -> pd.DataFrame:
    """Published rates in percent, a row a system; without a length-controlled one: left out."""
    if not path.is_file():
        raise UserError(f"there is no {path}: name the published leaderboard with --leaderboard")
    table = pd.read_csv(path, index_col=0)
    missing = {PUBLISHED, PLAIN} - set(table.columns)
    if missing:
        raise UserError(f"{path} has no column {', '.join(sorted(missing))}")
    return table[~table.index.duplicated()].dropna(subset=[PUBLISHED, PLAIN])


def read_judgements(path: Path) -> Judged:
    """Verdicts as AlpacaEval writes them: `preference` from 1, `output_1` (the baseline), to 2."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        judged = [row for row in rows if row["preference"] is not None]
        return Judged(
            [row["preference"] - 1 for row in judged],
            [len(row["output_2"]) for row in judged],
            [len(row["output_1"]) for row in judged],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a list of judgements (preference, output_1, output_2): {error!r}"
        ) from error


def rates(judged: Judged) -> tuple[float, float]:
    """The length-controlled and the plain win rate."""
    return (
        length_controlled_win_rate(*judged, resamples=RESAMPLES).estimate,
        win_rate(judged.preferences, resamples=RESAMPLES).estimate,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--results", type=Path, required=True, help="a folder a system, as AlpacaEval's `results`")
    add("--leaderboard", type=Path, required=True, help="the published rates, .csv")
    add("--judge", default=JUDGE, help="name of the folder that holds annotations.json")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
