"""Reading what earlier stages wrote, and a fingerprint of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from betaflow.data.tokenise import Encoded, encode, encode_prompt
from betaflow.errors import UserError
from betaflow.io import LOCAL, read_jsonl, write_json
from betaflow.training.dpo import ReferencedPairs
from betaflow.training.loop import Trained


def fingerprint(paths: list[str | Path], settings: Any) -> str:
    """SHA-256 of files' contents (folders: every file, by name) and of settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in map(Path, paths):
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            if "__pycache__" in file.parts:
                continue
            digest.update(file.relative_to(path.parent).as_posix().encode())
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


# The code that decides a trained model, beside its task: the same files as in dvc.yaml.
CODE: list[str | Path] = [
    "betaflow/training/loop.py",
    "betaflow/training/optim.py",
    "betaflow/policy",
    "betaflow/data/tokenise.py",
]


def training_fingerprint(method: str, inputs: list[str | Path], settings: Any) -> str:
    """Fingerprint of a training stage: its inputs, its code and its settings."""
    root = Path(__file__).resolve().parents[1]
    code = [root / path for path in [*CODE, f"betaflow/training/{method}.py", f"tasks/{method}.py"]]
    return fingerprint([*inputs, *code], settings)


def encode_pairs(tokenizer: Any, rows: list[dict[str, Any]]) -> tuple[list[Encoded], list[Encoded]]:
    """Chosen and rejected sequences of rendered pairs."""

    def side(row: dict[str, Any], name: str) -> Encoded:
        return encode(tokenizer, row["prompt"], row[name], finished=row[f"{name}_finished"])

    return [side(row, "chosen") for row in rows], [side(row, "rejected") for row in rows]


def referenced_pairs(tokenizer: Any, split: str) -> ReferencedPairs:
    """Pairs of a split with their cached reference log-probabilities."""
    rows = read_jsonl(f"out/pairs/{split}.jsonl")
    table = pd.read_parquet(f"out/reference/{split}.parquet")
    chosen, rejected = encode_pairs(tokenizer, rows)
    if [row["id"] for row in rows] != table["id"].tolist():
        raise UserError(
            "out/reference is not about the pairs in out/pairs; run `dvc repro reference`"
        )
    for name, sequences in (("chosen", chosen), ("rejected", rejected)):
        if table[f"{name}_tokens"].tolist() != [len(s.completion) for s in sequences]:
            raise UserError(
                "the reference was computed on other tokens than the policy is trained on; "
                "delete out/reference and run again"
            )
    return ReferencedPairs(
        chosen,
        rejected,
        torch.tensor(table["chosen_logps"].to_numpy(), dtype=torch.float32),
        torch.tensor(table["rejected_logps"].to_numpy(), dtype=torch.float32),
    )


def prompt_rows(
    tokenizer: Any, name: str, longest: int, limit: int | None = None
) -> list[dict[str, Any]]:
    """Rows of `out/data/<name>.jsonl` with `text` and `ids`, prompts that are too long left out."""
    from betaflow.data.chat import render_prompt

    found = []
    for row in read_jsonl(f"out/data/{name}.jsonl"):
        text = render_prompt(tokenizer, row["prompt"])
        ids = encode_prompt(tokenizer, text)
        if 0 < len(ids) <= longest:
            found.append({"id": row["id"], "text": text, "ids": ids})
        if limit is not None and len(found) == limit:
            break
    return found


def write_training(
    folder: Path, trained: Trained, figures: dict[str, float], about: dict[str, Any]
) -> None:
    """Write `metrics.jsonl` and `summary.json` beside a trained model. No wall time: see below."""
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        for row in trained.metrics:
            file.write(json.dumps(row, sort_keys=True) + "\n")
    summary = {
        **about,
        "steps": len(trained.metrics),
        "train_tokens": int(sum(row["tokens"] for row in trained.metrics)),
        "metrics": figures,
    }
    text = json.dumps(summary, sort_keys=True, indent=2) + "\n"
    (folder / "summary.json").write_text(text, encoding="utf-8")


def write_timing(name: str, seconds: float) -> None:
    """Keep measured wall time outside DVC: it is not a function of a stage's inputs."""
    write_json(LOCAL / "timings" / f"{name}.json", {"train_seconds": round(seconds, 2)})
