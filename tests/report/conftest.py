"""A made-up workspace: every input of the comparison, small, with known numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pytest

from betaflow.config import Arm, Params, arms, load_params
from betaflow.evaluation.controls import control_pairs
from betaflow.evaluation.judges import score_judge
from betaflow.io import write_json, write_jsonl
from betaflow.report.build import build, render
from betaflow.report.estimates import JUDGES
from betaflow.report.frontier_files import write_frontier
from betaflow.report.judgements import control_samples, judgements, no_pairs
from betaflow.report.table import tidy

Workspace = Callable[..., Params]
NASTY = '<script>alert("x")</script> & </pre>\x00\x1b[31m \u202eevil'


def samples(params: Params, arm: Arm, quality: float, *, gold: bool, text: str) -> pd.DataFrame:
    """Samples of one arm whose mean reward is `quality` above SFT's."""
    random = np.random.default_rng(crc32(arm.name.encode()))
    random_prompts = np.random.default_rng(7)
    rows = []
    settings = params.sample
    for domain, count in (("in", settings.prompts), ("out", settings.out_of_domain)):
        for index in range(count):
            level = random_prompts.normal()
            for temperature in settings.temperatures:
                for seed in settings.seeds[: 1 if temperature == 0 else None]:
                    reward = level + quality * (1.3 - temperature / 2) + random.normal()
                    tokens = int(random.integers(12, 60))
                    rows.append(
                        {
                            "prompt_id": f"{domain}{index:04d}",
                            "domain": domain,
                            "prompt": f"the film number {index} was {text}",
                            "temperature": temperature,
                            "seed": seed,
                            "completion": f" a {arm.name} thing {text}",
                            "finish_reason": "length" if tokens > 55 else "stop",
                            "completion_tokens": tokens,
                            "logprob": -tokens * 2.0,
                            "policy_logprob": -tokens * 2.0,
                            "reference_logprob": -tokens * 2.1,
                            "kl": quality**2 * random.gamma(4.0, 0.5)
                            if temperature == 1
                            else np.nan,
                            "gold_reward": reward if gold else np.nan,
                            "reward_model": 2 * reward + random.normal(),
                        }
                    )
    return pd.DataFrame(rows)


def metric_rows(arm: Arm) -> list[dict[str, Any]]:
    """A training run's log that looks like one."""
    random = np.random.default_rng(3)
    if arm.stage == "ppo":
        return [
            {
                "step": i,
                "reward/score": 1 - np.exp(-i / 20) + random.normal() / 10,
                "kl": i / 15 + random.normal() / 10,
            }
            for i in range(60)
        ]
    beta = float(arm.beta or 1)
    return [
        {
            "step": i,
            "loss": 0.69 - 0.25 * (1 - np.exp(-i / 60)) / (1 + beta / 3) + random.normal() / 50,
            "rewards/margin": beta * (1 - np.exp(-i / 60)) + random.normal() / 20,
            "rewards/accuracy": 0.5 + 0.25 * (1 - np.exp(-i / 40)) + random.normal() / 30,
            **(
                {"reward/score": i / 100, "log_ratio": i / 80} if arm.method == "online_dpo" else {}
            ),
        }
        for i in range(200)
    ]


COST = {"train_tokens": 123456, "sampled_tokens": 11, "train_flops": 1e12}
QUALITY = {"sft": 0.0, 0.1: 2.0, 0.3: 1.9, 1.0: 1.2, 3.0: 0.6}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Make every input under `tmp_path/out`, go there, and return its params."""
    return maker(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The comparison of a workspace made with such options: a folder that tests only read."""

    def make(**options: Any) -> Path:
        folder = tmp_path_factory.mktemp("compared")
        with pytest.MonkeyPatch.context() as patch:
            params = maker(folder, patch)(**options)
            (folder / "out/compare").mkdir()
            build(params, folder / "out/compare")
            render(params, folder / "out/compare")
        return folder / "out/compare"

    return make


def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The function that `workspace` returns."""

    def make(
        *,
        gold: bool = True,
        text: str = "fine",
        prompts: int = 40,
        resamples: int = 200,
        every_method: bool = False,
        draws: int = 0,
        held_out: int = 60,
    ) -> Params:
        monkeypatch.chdir(tmp_path)
        root = Path(__file__).resolve().parents[2]
        params = load_params(root / "params.yaml")
        # A sweep of its own: these tests name arms, whatever the default's grid is.
        points: dict[str, dict[str, Any]] = {
            "dpo": {"beta": [0.1, 0.3, 1.0, 3.0], "learning_rate": [0.001]},
            "ppo": {"beta": [0.1], "learning_rate": [0.0003]},
        }
        if every_method:
            pair_methods = ["dpo", "slic", "online_dpo"]
            points["dpo"] |= {"method": pair_methods, "beta": [0.1, 1.0]}
            points["ipo"] = {"beta": [0.1, 1.0], "learning_rate": [0.001]}
            points["unlikelihood"] = {"alpha": [0, 0.5], "learning_rate": [0.001]}
            points["ppo"] |= {"method": ["ppo", "ppo_gt"], "target_kl": [0, 6]}
            points["best_of_n"] = {"n": [4, 16]}
        sections = {}
        for name, changes in points.items():
            section = getattr(params, name)
            grid = section.grid.model_copy(update=changes)
            sections[name] = section.model_copy(update={"grid": grid})
        params = params.model_copy(update=sections)
        compare: dict[str, Any] = {"bootstrap": resamples, "report_samples": 3}
        compare |= {} if gold else {"judge": "reward_model"}
        params = params.model_copy(
            update={
                "compare": params.compare.model_copy(update=compare),
                "sample": params.sample.model_copy(
                    update={"prompts": prompts, "out_of_domain": 12}
                ),
            }
        )
        out = Path("out")
        sweep = arms(params)
        write_json(out / "arms.json", [{"name": a.name, **a.model_dump()} for a in sweep])
        (out / "samples").mkdir(parents=True, exist_ok=True)
        for arm in sweep:
            quality = 1.3 if arm.stage == "ppo" else QUALITY[arm.beta or "sft"]
            quality += {"ipo": -0.1, "slic": -0.2, "unlikelihood": 0.5}.get(arm.method, 0.0)
            quality += (arm.n or 0) / 4
            table = samples(params, arm, quality, gold=gold, text=text)
            if not arm.has_model:
                table = table[(table["temperature"] == 1.0) & (table["domain"] == "in")]
            table.to_parquet(out / "samples" / f"{arm.name}.parquet")
            if not arm.has_model:
                continue
            folder = out / arm.model_dir.relative_to("out")
            write_json(folder / "summary.json", {**COST, "arm": arm.name})
            write_jsonl(folder / "metrics.jsonl", metric_rows(arm))
            write_json(out / "benchmark" / f"{arm.name}.json", benchmark(quality))
            write_json(out / ".local/timings" / f"{arm.name}.json", {"train_seconds": 41.25})
        write_json(out / ".local/timings/reward.json", {"train_seconds": 12.0})
        for stage, flops in (("reward", 6e12), ("reference", 2e12)):
            cost = {"train_tokens": 2000, "train_flops": flops}
            write_json(out / stage / "summary.json", cost)
        margins = np.random.default_rng(0).normal(0.5, 1.0, held_out)
        pairs = [{"id": f"{n}", "prompt": f"{n // 2}"} for n in range(held_out)]  # two a prompt
        write_jsonl(out / "pairs/eval.jsonl", pairs)
        table = pd.DataFrame({"id": [pair["id"] for pair in pairs], "margin": margins})
        table.to_parquet(out / "reward/held_out.parquet")
        write_frontier_files(params, out, draws)
        write_judgements(params, out)
        write_json(out / "data/statistics.json", {"kept": {"sft_train": 16000}})
        write_json(
            out / "pairs/statistics.json", {"train": {"pairs": 4860}, "eval": {"pairs": 540}}
        )
        return params

    return make


def write_frontier_files(params: Params, out: Path, draws: int) -> None:
    """What the stage `frontier` writes: with an optimum where there are draws."""
    if not draws:
        nothing = {"optimum": None, "arms": [], "methods": [], "violations": []}
        write_json(out / "frontier/frontier.json", nothing)
        return
    sft = pd.read_parquet(out / "samples/sft.parquet")
    prompts = sft[sft["domain"] == "in"].groupby("prompt_id")["gold_reward"].mean()
    random = np.random.default_rng(1)
    rewards = prompts.to_numpy()[:, None] + 1.5 * random.normal(size=(len(prompts), draws))
    (out / "optimum").mkdir()
    pd.DataFrame(
        {
            "prompt_id": np.repeat(prompts.index, draws),
            "draw": np.tile(np.arange(draws), len(prompts)),
            "gold_reward": rewards.ravel(),
            "reward_model": (rewards + random.normal(size=rewards.shape)).ravel(),
        }
    ).to_parquet(out / "optimum/draws.parquet")
    write_frontier(params, out / "frontier")


def write_judgements(params: Params, out: Path) -> None:
    """What the stage `judge` writes where a score judges; constant answers score low."""
    column = JUDGES[params.compare.judge]
    sft = pd.read_parquet(out / "samples/sft.parquet")
    controls = control_pairs(control_samples(sft), {column: lambda texts, _: [-9.0] * len(texts)})
    verdicts = score_judge(column)(controls)
    document = judgements(no_pairs(), controls, verdicts, params.compare) | {"usage": None}
    write_json(out / "judgements/summary.json", tidy(document))


def benchmark(quality: float) -> dict[str, Any]:
    """lm-eval results as the harness adapter writes them; all arms answer the same documents."""
    random = np.random.default_rng(5)
    right = random.uniform(size=400) < 0.61 - quality / 50
    words = random.integers(5, 40, 200)
    logprobs = -words * (np.log(8.5 + quality) + random.normal(0, 0.2, 200))
    perplexity = float(np.exp(-logprobs.sum() / words.sum()))
    return {
        "engine": "hf",
        "results": {
            "betaflow_cloze": {"acc": float(right.mean()), "acc_stderr": 0.02, "alias": "cloze"},
            "betaflow_perplexity": {
                "word_perplexity": perplexity,
                "word_perplexity_stderr": "N/A",
            },
        },
        "n_samples": {"betaflow_cloze": 400, "betaflow_perplexity": {"effective": 200}},
        "higher_is_better": {
            "betaflow_cloze": {"acc": True},
            "betaflow_perplexity": {"word_perplexity": False},
        },
        "documents": {
            "betaflow_cloze": {"hash": "c", "results": {"acc": right.astype(float).tolist()}},
            "betaflow_perplexity": {
                "hash": "p",
                "results": {
                    "word_perplexity": np.stack([logprobs, words], axis=1).tolist(),
                },
            },
        },
    }


@pytest.fixture(scope="session")
def nasty() -> str:
    """Text that a page must not obey: markup, control characters, a reordering mark."""
    return NASTY
