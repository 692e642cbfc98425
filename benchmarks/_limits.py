"""What keeps a policy from the optimum: trials of one change each, and their picture."""

from __future__ import annotations

import argparse
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from betaflow.config import Params, load_params
from betaflow.errors import UserError
from betaflow.evaluation.curve import Probe, probe
from betaflow.evaluation.frontier import fraction_of_optimum
from betaflow.io import atomic_file, write_json
from betaflow.policy.loading import load_policy, load_tokenizer
from betaflow.report.canvas import new_figure, save
from betaflow.report.frontier import Draws, read_draws
from betaflow.sampling.hf_engine import HFEngine
from betaflow.worlds.sentiment import gold_reward
from tasks._inputs import held_out_prompts, training_prompts

DRAWN_TOGETHER = 512
PROBE_DRAWS = 16  # completions of each held-out prompt
Row = dict[str, Any]


class Case(Protocol):
    """How a policy is trained."""

    @property
    def name(self) -> str:
        """What it changes."""


class Workspace(ABC):
    """A workspace's reference, prompts and optimum, and what is trained in it."""

    def __init__(self, params: Params, prompts: int) -> None:
        self.params = params
        self.tokenizer = load_tokenizer("out/sft")
        self.pad = self.tokenizer.pad_token_id
        self.reference = load_policy("out/sft").eval()
        longest = params.pairs.max_prompt_tokens
        self.prompts = training_prompts(self.tokenizer, longest)[:prompts]
        self.held_out = held_out_prompts(self.tokenizer, longest, params.sample.prompts)
        self.optimum = self._optimum()

    def _optimum(self) -> Draws:
        path = Path("out/optimum/draws.parquet")
        table = pd.read_parquet(path) if path.exists() else pd.DataFrame()
        found = read_draws(table, self.params.optimum.minimum_ess) if len(table) else None
        if found is None:
            raise UserError("no optimum here: run presets/frontier.yaml as far as `optimum` first")
        return found

    @abstractmethod
    def train(self, case: Any, seed: int) -> Any:
        """The policy that is made in a case."""

    def score(self, policy: Any) -> Row:
        """Reward, KL and share of the optimum's gain on held-out prompts; drift of the length."""
        asked = Probe(
            self.held_out, PROBE_DRAWS, self.params.sample.max_new_tokens, 256, "float32",
            gold_reward,
        )  # fmt: skip
        engine = HFEngine(policy.eval(), self.tokenizer, DRAWN_TOGETHER)
        seen = probe(policy, self.reference, engine, asked)
        share = fraction_of_optimum(
            seen["gold_reward"],
            seen["kl"],
            seen["prompt_id"],
            self.optimum.found,
            self.optimum.prompts,
        )
        within = seen.groupby("prompt_id")[["log_ratio", "gold_reward", "completion_tokens"]]
        correlations = (seen[list(within.mean())] - within.transform("mean")).corr()["log_ratio"]
        return {
            "reward": share.reward,
            "kl": share.kl,
            "optimum": share.optimum,
            "fraction": (share.reward - share.reference) / (share.optimum - share.reference),
            "low": none_for_nan(share.fraction.low),
            "high": none_for_nan(share.fraction.high),
            "note": share.note,
            "tokens": float(seen["completion_tokens"].mean()),
            "log_ratio_and_reward": float(correlations["gold_reward"]),
            "log_ratio_and_tokens": float(correlations["completion_tokens"]),
        }


def none_for_nan(number: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(number) else float(number)


def draw(rows: Sequence[Row]) -> Figure:
    """Each case's share of the optimum's gain, its KLs beside it; a mark a seed.

    Hollow: the draws do not tell the optimum at so large a KL, and the share is at least this.
    """
    names = list(dict.fromkeys(row["case"] for row in rows))
    figure, (axes,) = new_figure(8.0, 0.8 + 0.34 * len(names))
    for row in rows:
        height = -names.index(row["case"]) + 0.14 * row["seed"]
        ends = (
            [row["fraction"] - (row["low"] or row["fraction"])],
            [(row["high"] or row["fraction"]) - row["fraction"]],
        )
        axes.errorbar(
            row["fraction"], height, xerr=ends, fmt="o", color="#0a3d80", markersize=5,
            markerfacecolor="white" if row["note"] else "#0a3d80",
        )  # fmt: skip
    for place, name in enumerate(names):
        told = ", ".join(f"{row['kl']:.1f}" for row in rows if row["case"] == name)
        axes.annotate(
            f"{told} nats", (1.01, -place), xycoords=("axes fraction", "data"),
            fontsize=7.5, va="center",
        )  # fmt: skip
    axes.set_yticks([-place for place in range(len(names))], names)
    axes.set_xlabel("share of the optimum's gain at the policy's KL; hollow: at least")
    return figure


def label(prefix: str, name: str, seed: int) -> str:
    """What a training is called, in its progress and its checkpoints."""
    return f"{prefix}-{name.replace(' ', '-').replace(',', '')}-s{seed}"


def command_line(description: str | None, out: str) -> argparse.ArgumentParser:
    """A parser of what a benchmark asks for, but for what `run_cases` adds."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(out), help="folder to write to")
    return parser


def run_cases(
    parser: argparse.ArgumentParser,
    cases: Sequence[Case],
    open_workspace: Callable[[Params, argparse.Namespace], Workspace],
) -> None:
    """Run the cases that the command line asks for and that `limits.json` lacks, and tell all."""
    parser.add_argument("--prompts", type=int, default=4000, help="training prompts, at most")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of training")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    names = [case.name for case in cases]
    parser.add_argument("--cases", nargs="+", choices=names, default=names, metavar="CASE",
        help=f"those of: {'; '.join(names)}")  # fmt: skip
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    workspace = open_workspace(load_params(), given)
    path = given.out / "limits.json"
    rows: list[Row] = json.loads(path.read_text()) if path.exists() else []
    given.out.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        for case in (one for one in cases if one.name in given.cases):
            about = {"case": case.name, "seed": seed, "prompts": given.prompts}
            if any(about.items() <= row.items() for row in rows):
                continue
            rows.append({**about, **workspace.score(workspace.train(case, seed))})
            write_json(path, rows)
            told = rows[-1]
            print(f"{case.name} (seed {seed}): {told['fraction']:.1%} at {told['kl']:.2f} nats")
    with atomic_file(given.out / "limits.png") as temporary:
        save(lambda: draw(rows), temporary)
