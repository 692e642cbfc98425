"""Reading what earlier stages wrote, and a fingerprint of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from betaflow.data.chat import render_prompt
from betaflow.data.tokenise import Encoded, Limits, cut_pair, encode, encode_prompt
from betaflow.errors import UserError
from betaflow.io import parse_yaml, read_jsonl

# Settings by which a checkpoint of the same run may differ: how often one is written and how many
# are kept, what is shown meanwhile, over how many processes the work is spread.
NEUTRAL = {"checkpoint_seconds", "keep_checkpoints", "sample_every", "processes"}


def without_neutral(settings: Any) -> Any:
    """Settings without those that make no other run."""
    if isinstance(settings, dict):
        return {k: without_neutral(v) for k, v in settings.items() if k not in NEUTRAL}
    return settings


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


def stage_fingerprint(stage: str, settings: Any, item: Mapping[str, Any] | None = None) -> str:
    """SHA-256 of what `dvc.yaml` says a stage depends on (data and code), and of its settings.

    Args:
        item: the point of the stage's matrix, by which `${item.…}` in its dependencies is filled.
    """
    names = _deps(stage)
    for key, value in (item or {}).items():
        names = [name.replace(f"${{item.{key}}}", str(value)) for name in names]
    deps = [Path(name) for name in names]
    missing = [str(dep) for dep in deps if not dep.exists()]
    if missing:
        raise UserError(f"{', '.join(missing)} is missing; run `make align` (or `dvc repro`)")
    return fingerprint(list(deps), without_neutral(settings))


def stage_code(stage: str) -> list[str | Path]:
    """The files and folders of code that `dvc.yaml` says a stage depends on."""
    return [name for name in _deps(stage) if name.startswith(("betaflow/", "tasks/"))]


def _deps(stage: str) -> list[str]:
    try:
        stages = parse_yaml(Path("dvc.yaml").read_bytes())["stages"]
    except FileNotFoundError:
        raise UserError("dvc.yaml is missing; run from the repository's root") from None
    return list(stages[stage]["deps"])


def encode_pairs(
    tokenizer: Any, rows: list[dict[str, Any]], limits: Limits
) -> tuple[list[Encoded], list[Encoded]]:
    """Chosen and rejected sequences of rendered pairs, cut to the limits."""

    @cache  # a completion stands in many pairs
    def encoded(prompt: str, completion: str, finished: bool) -> Encoded:
        return encode(tokenizer, prompt, completion, finished=finished)

    def side(row: dict[str, Any], name: str) -> Encoded:
        return encoded(row["prompt"], row[name], row[f"{name}_finished"])

    pairs = [(side(row, "chosen"), side(row, "rejected")) for row in rows]
    cut = [cut_pair(*pair, limits, tokenizer.bos_token_id) for pair in pairs]
    return [chosen for chosen, _ in cut], [rejected for _, rejected in cut]


def held_out_prompts(tokenizer: Any, longest: int, limit: int) -> list[dict[str, Any]]:
    """At most `limit` in-domain `prompt_rows` that are held out. Raises `UserError` for none."""
    rows = prompt_rows(tokenizer, "prompts_eval", longest, limit)
    if not rows:
        if not read_jsonl("out/data/prompts_eval.jsonl"):
            raise UserError(
                "out/data/prompts_eval.jsonl holds no prompt; give more data or change "
                "data.eval_fraction"
            )
        raise UserError("no held-out prompt is short enough; raise pairs.max_prompt_tokens")
    return rows


def training_prompts(tokenizer: Any, longest: int) -> list[dict[str, Any]]:
    """`prompt_rows` of every prompt that training may see, labelled or not."""
    return [
        row
        for name in ("prompts_train", "prompts_unlabelled")
        for row in prompt_rows(tokenizer, name, longest)
    ]


def prompt_rows(
    tokenizer: Any, name: str, longest: int, limit: int | None = None
) -> list[dict[str, Any]]:
    """Rows of `out/data/<name>.jsonl` with `text` and `ids`, prompts that are too long left out."""
    found = []
    left_out = 0
    for row in read_jsonl(f"out/data/{name}.jsonl"):
        text = render_prompt(tokenizer, row["prompt"])
        ids = encode_prompt(tokenizer, text)
        if 0 < len(ids) <= longest:
            found.append({"id": row["id"], "text": text, "ids": ids})
        else:
            left_out += 1
        if limit is not None and len(found) == limit:
            break
    if left_out:
        print(f"{name}: {left_out} prompts of more than {longest} tokens left out", flush=True)
    return found
