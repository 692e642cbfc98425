"""A made-up finished sweep to promote arms of: real model folders, numbers that are known."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import yaml
from safetensors.torch import load_file, save_file

from betaflow.config import Params, arms, parse_params
from betaflow.io import write_json, write_jsonl

GOOD, BETTER, SAME = (f"dpo-b{beta}-lr0.0005-s0" for beta in (0.1, 0.3, 1.0))
QUALITY = {"sft": 0.0, GOOD: 2.0, BETTER: 4.0, SAME: 4.0}  # SAME: no better than BETTER
PROMPTS = 60


def settings(repository: Path, **promotion: Any) -> dict[str, Any]:
    """params.yaml of that sweep, with changes to `promotion`."""
    values: dict[str, Any] = yaml.safe_load((repository / "params.yaml").read_text())
    values["dpo"]["grid"]["beta"] = [0.1, 0.3, 1.0]
    values["ppo"]["grid"]["beta"] = [7]
    values["sample"] |= {"engine": "hf", "temperatures": [1.0], "prompts": PROMPTS}
    values["sample"] |= {"out_of_domain": 0, "max_new_tokens": 6}
    values["pairs"]["max_prompt_tokens"] = 24
    values["benchmark"] |= {"engine": "hf", "tasks": ["quiz"]}
    values["compare"]["bootstrap"] = 200
    values["promotion"] |= {"methods": ["dpo"], "detect": {"win_rate": 0.75, "power": 0.8}}
    values["promotion"] |= promotion
    return values


def make_sweep(folder: Path, tiny: Path, repository: Path, **promotion: Any) -> Params:
    """Write what the stages leave of it into `folder`, which is the workspace."""
    values = settings(repository, **promotion)
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    params = parse_params(values)
    for name in ("betaflow", "tasks", "dvc.yaml"):
        if not (folder / name).exists():
            (folder / name).symlink_to(repository / name)
    out = folder / "out"
    prompts = [{"id": f"p{n:03d}", "prompt": f"the film number {n} was"} for n in range(PROMPTS)]
    write_jsonl(out / "data/prompts_eval.jsonl", prompts)
    write_jsonl(out / "data/prompts_ood.jsonl", [])
    models = [arm for arm in arms(params) if arm.name in QUALITY]
    for place, arm in enumerate(models):
        model = folder / arm.model_dir
        shutil.copytree(tiny, model)
        weights = load_file(model / "model.safetensors")
        weights["model.norm.weight"] *= 1 + place / 100
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
        about = {"arm": arm.name, **arm.model_dump(), "fingerprint": f"{place:064d}"}
        write_json(model / "summary.json", about | {"settings": {}, "metrics": {}})
        (out / "samples").mkdir(exist_ok=True)
        samples(arm.name, prompts).to_parquet(out / f"samples/{arm.name}.parquet")
        write_json(out / f"benchmark/{arm.name}.json", benchmark(arm.name))
    row = {"temperature": 1.0, "prompts": PROMPTS, "samples": 2 * PROMPTS, "kl": 1.0}
    rows = [
        {"arm": a.name, **a.model_dump(), **row, "win_rate_vs_sft": 0.5 + QUALITY[a.name] / 10}
        for a in models
    ]
    fingerprints = {arm.name: f"{place:064d}" for place, arm in enumerate(models)}
    write_json(out / "compare/estimates.json", {"rows": rows, "fingerprints": fingerprints})
    judged(out)
    return params


def judged(
    out: Path,
    *failed: str,
    unmeasured: tuple[str, ...] = (),
    judge: tuple[str, str | None] = ("gold", None),
) -> None:
    """The controls of the judge, some of them failed or not measured."""
    names = ["null", "injection", "self", "longest", "missing"]
    if judge[0] == "llm":
        names.insert(4, "order")
    rows = [
        {"control": name, "passed": None if name in unmeasured else name not in failed}
        for name in names
    ]
    controls = {"passed": not failed, "failed": list(failed), "rows": rows}
    about = {"judge": judge[0], "model": judge[1], "controls": controls}
    write_json(out / "judgements/summary.json", about)


def samples(name: str, prompts: list[dict[str, Any]]) -> pd.DataFrame:
    """Two draws a prompt, whose gold reward is the arm's quality and noise."""
    random = np.random.default_rng(crc32(name.encode()))
    table = pd.DataFrame([row for row in prompts for _ in range(2)])
    table = table.rename(columns={"id": "prompt_id"})
    noise = random.normal(size=len(table))
    return table.assign(
        domain="in",
        temperature=1.0,
        seed=[0, 1] * len(prompts),
        completion=f" {name}",
        completion_tokens=random.integers(10, 30, len(table)),
        kl=2.0 + noise / 10,
        gold_reward=QUALITY[name] + noise,
        reward_model=noise,
    )


def benchmark(name: str, right: int = 80) -> dict[str, Any]:
    """One task of 100 documents."""
    results = {"acc": [1.0] * right + [0.0] * (100 - right)}
    return {
        "arm": name,
        "results": {"quiz": {"acc": right / 100}},
        "higher_is_better": {"quiz": {"acc": True}},
        "documents": {"quiz": {"hash": "h", "results": results}},
    }
