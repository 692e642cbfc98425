"""What a model did on the evaluation's prompts and tasks, and what that depends on.

A registered version carries its own: samples, benchmark and a fingerprint of each one's inputs.
While these are the same, a later challenger is compared with them; else the version's weights
are fetched from the registry, and sampled or benchmarked anew by the stages' own code.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from betaflow.config import Arm, Params
from betaflow.errors import UserError
from betaflow.io import LOCAL, read_json, write_json
from betaflow.report.estimates import SFT
from betaflow.report.inputs import read_table
from tasks._inputs import fingerprint, stage_code
from tasks._registry import CONTENT, EVIDENCE, FOLDER, MODEL, TAG, Registry, Version

PARTS = {"samples": "samples.parquet", "benchmark": "benchmark.json"}
# Of a model folder: what `from_pretrained` reads, and none of the tables that stages put beside it.
KINDS = {".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py"}
# Of these, what says nothing of the tokenizer; `.safetensors` besides.
NO_TOKENIZER = {"config.json", "generation_config.json", "model.safetensors.index.json"}
# Settings by which no completion and no score differs by more than `logprob_tolerance` allows.
NEUTRAL = {"threads", "batch_size", "logprob_tolerance"}


class Evidence(NamedTuple):
    """One model's samples (columns as in out/samples), lm-eval results and content fingerprint.

    `drawn_as`: the name by whose seeds the samples were drawn (see `tasks.sample`).
    """

    name: str
    samples: pd.DataFrame
    benchmark: dict[str, Any]
    content: str | None
    drawn_as: str | None = None


def model_files(folder: Path) -> list[Path]:
    """The files of a model and its tokenizer, without what betaflow wrote beside them."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in KINDS and path.name != "summary.json"
    ]


def content(folder: Path) -> str:
    """SHA-256 of a model's files."""
    return fingerprint(list(model_files(folder)), None)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a model folder that its tokenizer is read from, whatever its kind."""
    return [
        path
        for path in model_files(folder)
        if path.suffix != ".safetensors" and path.name not in NO_TOKENIZER
    ]


def inputs(params: Params) -> dict[str, str]:
    """By part of the evidence, a fingerprint of all that it depends on apart from the model.

    The code is that of the stages that make it for an arm: scores of other code can't be paired.
    """
    prompts = [f"out/data/prompts_{name}.jsonl" for name in ("eval", "ood")]
    tokenizer = tokenizer_files(Path(f"out/{SFT}"))  # in whose tokens lengths and KL are
    scorer = content(Path("out/reward")) if params.compare.judge == "reward_model" else None
    sampled = {
        "sample": params.sample.model_dump(exclude=NEUTRAL),
        "longest": params.pairs.max_prompt_tokens,
        "precision": params.model.precision,
        "judge": [params.compare.judge, scorer],
    }
    documents = ("out/pairs/eval.jsonl", "out/pairs/text_eval.jsonl", "out/data/cloze.jsonl")
    return {
        "samples": fingerprint([*prompts, *tokenizer, *stage_code("sample-sft")], sampled),
        "benchmark": fingerprint(
            [*filter(os.path.exists, documents), *stage_code("benchmark-sft")],
            [params.benchmark.model_dump(exclude=NEUTRAL), params.model.precision],
        ),
    }


def of_arm(arm: Arm) -> Evidence:
    """What the stages `sample` and `benchmark` left of an arm of the sweep."""
    return Evidence(
        arm.name,
        read_table(Path(f"out/samples/{arm.name}.parquet")),
        read_json(f"out/benchmark/{arm.name}.json"),
        content(arm.model_dir),
        arm.name,
    )


def write(found: Evidence, params: Params, folder: Path) -> None:
    """Write what `of_version` reads."""
    found.samples.to_parquet(folder / PARTS["samples"], index=False)
    write_json(folder / PARTS["benchmark"], found.benchmark)
    write_json(folder / "inputs.json", inputs(params))


def of_version(params: Params, registry: Registry, version: Version) -> Evidence:
    """The evidence of a registered version, made anew as far as its inputs changed since.

    All of it is where the files are not those that were registered.

    Raises:
        UserError: it can't be made anew: other weights than were registered, another tokenizer than
            this sweep's, or the engine failed.
    """
    name = f"version {version.number}"
    if arm := version.tags.get(f"{TAG}arm"):
        name += f" ({arm})"
    (LOCAL / "tmp").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=LOCAL / "tmp") as place:
        here = Path(place).resolve()
        kept = registry.download(version.number, FOLDER, here)
        whole = kept is not None and fingerprint([kept], None) == version.tags.get(EVIDENCE)
        made_of = read_json(kept / "inputs.json") if kept and whole else {}
        now = inputs(params)
        old = [part for part in PARTS if made_of.get(part) != now[part]]
        if kept is None:
            kept = here
        if old:
            why = "are of other inputs" if whole else "are not what was registered"
            print(f"{name}: its {' and '.join(old)} {why}; made anew", flush=True)
            folder = registry.download(version.number, MODEL, here)
            if folder is not None and content(folder) != version.tags.get(CONTENT):
                raise UserError(
                    f"the champion, {name}, has other weights by now than were registered; find "
                    "out why, or go back to the champion before (`make rollback`)"
                )
            _require_same_tokenizer(folder, name)
            for part in old:
                _make(part, folder, kept / PARTS[part])
        return Evidence(
            name,
            read_table(kept / PARTS["samples"]),
            read_json(kept / PARTS["benchmark"]),
            version.tags.get(CONTENT),
            MODEL if "samples" in old else arm,
        )


def _require_same_tokenizer(folder: Path | None, name: str) -> None:
    """Stop where completions can't be scored by this sweep's reference and reward model."""
    theirs = [] if folder is None else _vocabulary(folder)
    if not theirs:
        why = "was registered without its tokenizer"
    elif fingerprint([*theirs], None) != fingerprint([*_vocabulary(Path(f"out/{SFT}"))], None):
        why = "has another tokenizer than this sweep's models"
    else:
        return
    raise UserError(
        f"the champion, {name}, {why}, so it can't be sampled beside them; give this sweep's "
        "champions a name of their own: run.registered_model in params.yaml"
    )


def _vocabulary(folder: Path) -> list[Path]:
    """What makes tokens of a text: `tokenizer.json`, or a slow tokenizer's own files.

    Not `tokenizer_config.json`, which also tells whether the tokenizer was read from a folder.
    """
    files = [path for path in tokenizer_files(folder) if path.name != "tokenizer_config.json"]
    fast = [path for path in files if path.name == "tokenizer.json"]
    return fast or files


def _make(part: str, folder: Path | None, file: Path) -> None:
    """In a process of its own, as a stage has: an engine does not give back all that it takes."""
    command = [sys.executable, "-m", "tasks.evaluate", part, "--model", str(folder)]
    done = subprocess.run([*command, "--out", str(file)], check=False)
    if done.returncode:
        raise UserError(f"the champion's {part} could not be made anew; its message is above")
