"""What must be the same on both sides of the PPO benchmark, and its table."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from _figures import median
from _measure import GIB
from _rollouts import PHASES

from betaflow.data.tokenise import Encoded
from betaflow.errors import UserError
from betaflow.policy.loading import load_reward_model
from betaflow.policy.rewards import all_sequence_scores

WARM_UP = 1  # rollouts that are not counted
# By precision. KL before the first step, nats a completion: TRL's is the cached decoder's, which
# rounds otherwise, and in bf16 of a policy under autocast against a reference that is not.
START_KL = {"fp32": 1e-2, "bf16": 0.1}
# Between a side's mean score and that of betaflow's reward model in float32.
SAME_SCORE = {"fp32": 1e-3, "bf16": 2e-2}
SAME_LENGTH = 0.1  # of the mean completion
STANDARD_ERRORS = 4

Result = dict[str, Any]


def rescore(result: Result, reward: Path, pad: int, missing_eos_penalty: float, eos: int) -> None:
    """Score the first rollout's episodes with betaflow's reward model; the text of them goes."""
    episodes = [Encoded(*episode) for episode in result.pop("first_episodes")]
    scores = all_sequence_scores(
        load_reward_model(reward).eval(), episodes, pad=pad, batch_size=32, precision="float32"
    )
    ended = [episode.completion[-1:] == [eos] for episode in episodes]
    result["first_prompts"] = sorted(episode.prompt for episode in episodes)
    result["first_scores"] = [
        float(score) - (0.0 if end else missing_eos_penalty)
        for score, end in zip(scores, ended, strict=True)
    ]


def require_same_work(side: str, theirs: Result, ours: Result, steps: int, precision: str) -> None:
    """Stop unless a side did betaflow's work: the comparison would mean nothing."""
    for name, result in (("betaflow", ours), (side, theirs)):
        scores = result["first_scores"]
        if result["optimizer_steps"] != steps:
            raise UserError(f"{name} took {result['optimizer_steps']} optimizer steps, not {steps}")
        if not abs(result["kl"][0]) <= START_KL[precision]:
            raise UserError(f"{name}'s KL before the first step is {result['kl'][0]:.1e}, not 0")
        if not abs(result["scores"][0] - statistics.mean(scores)) <= SAME_SCORE[precision]:
            raise UserError(
                f"{name} scores its first rollout {result['scores'][0]:.4f} on average, the "
                f"reward model {statistics.mean(scores):.4f}: it is not the same reward"
            )
    for key, what in (("parameters", "number of weights"), ("first_prompts", "first prompts")):
        if theirs[key] != ours[key]:
            raise UserError(f"{side}'s {what} differ from betaflow's")
    near("scores of the first rollout", side, theirs["first_scores"], ours["first_scores"])
    lengths = [[n for part in r["lengths"][WARM_UP:] for n in part] for r in (theirs, ours)]
    near("completions' tokens", side, *lengths)
    means = [statistics.mean(one) for one in lengths]
    if not abs(means[0] - means[1]) <= SAME_LENGTH * means[1]:
        raise UserError(
            f"{side}'s completions have {means[0]:.1f} tokens, betaflow's {means[1]:.1f}: they are "
            f"more than {SAME_LENGTH:.0%} apart. If it is chance, draw more episodes"
        )


def near(what: str, side: str, theirs: list[float], ours: list[float]) -> None:
    """Stop where two samples' means differ by more than chance explains."""
    gap = statistics.mean(theirs) - statistics.mean(ours)
    error = (standard_error(theirs) ** 2 + standard_error(ours) ** 2) ** 0.5
    if not abs(gap) <= STANDARD_ERRORS * error + 1e-6:
        raise UserError(
            f"the {what} differ: {side} {statistics.mean(theirs):.3f}, betaflow "
            f"{statistics.mean(ours):.3f}, standard error of the difference {error:.3f}"
        )


def standard_error(sample: list[float]) -> float:
    return float(statistics.stdev(sample)) / len(sample) ** 0.5


def figures(results: list[Result]) -> dict[str, Any]:
    """A side's figures: of each repeat over the counted rollouts, then the median of repeats."""
    found: dict[str, list[float]] = {}
    for result in results:
        counted = result["phase_seconds"][WARM_UP:]
        lengths = [n for part in result["lengths"][WARM_UP:] for n in part]
        thousands = len(lengths) / 1000
        phases = {p: sum(row[p] for row in counted) / thousands for p in PHASES}
        row = {
            "seconds": sum(phases.values()),
            **phases,
            "cpu_seconds": sum(result["cpu_seconds"][WARM_UP:]) / thousands,
            "tokens_per_second": sum(lengths) / thousands / sum(phases.values()),
            "completion_tokens": statistics.mean(lengths),
            "finished": statistics.mean(result["finished"][WARM_UP:]),
            "first_kl": result["kl"][0],
            "first_score": result["scores"][0],
            "first_score_error": standard_error(result["first_scores"]),
            "last_kl": result["kl"][-1],
            "optimizer_steps": result["optimizer_steps"],
            "peak_gib": result["peak_bytes"] / GIB,
            "before_model_gib": result["before_model_bytes"] / GIB,
        }
        for key, value in row.items():
            found.setdefault(key, []).append(value)
    return {key: median(values) for key, values in found.items()} | {"repeats": found["seconds"]}


def against(side: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """A side's seconds over betaflow's, repeat by repeat; above 1 betaflow takes less time."""
    ratios = [a / b for a, b in zip(side["repeats"], ours["repeats"], strict=True)]
    return {
        "cpu_ratio": side["cpu_seconds"] / ours["cpu_seconds"],
        "token_ratio": ours["tokens_per_second"] / side["tokens_per_second"],
        "ratio": median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
        **{f"{phase}_ratio": side[phase] / ours[phase] for phase in PHASES},
    }


ROWS = (
    ("s for 1,000 episodes (median)", "seconds", "{:.2f}"),
    ("  drawing the episodes", "rollout", "{:.2f}"),
    ("  scoring them", "scoring", "{:.2f}"),
    ("  improving the policy", "update", "{:.2f}"),
    ("  its processor time, s", "cpu_seconds", "{:.2f}"),
    ("completion tokens/s", "tokens_per_second", "{:,.0f}"),
    ("peak memory, GiB", "peak_gib", "{:.2f}"),
    ("  of it before the model, GiB", "before_model_gib", "{:.2f}"),
    ("mean completion, tokens", "completion_tokens", "{:.2f}"),
    ("ended by EOS", "finished", "{:.1%}"),
    ("score of the first rollout", "first_score", "{:.3f}"),
    ("  its standard error", "first_score_error", "{:.3f}"),
    ("KL of the first rollout, nats", "first_kl", "{:.1e}"),
    ("KL of the last rollout, nats", "last_kl", "{:.1e}"),
    ("optimizer steps", "optimizer_steps", "{:.0f}"),
    ("ratio to betaflow, median", "ratio", "{:.2f}"),
    ("  least of the repeats", "ratio_least", "{:.2f}"),
    ("  most of the repeats", "ratio_most", "{:.2f}"),
    ("  of processor time", "cpu_ratio", "{:.2f}"),
    ("  a completion token", "token_ratio", "{:.2f}"),
    ("  of drawing", "rollout_ratio", "{:.2f}"),
    ("  of scoring", "scoring_ratio", "{:.2f}"),
    ("  of improving", "update_ratio", "{:.2f}"),
)
