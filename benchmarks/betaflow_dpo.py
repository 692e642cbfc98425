"""Worker: train the job's pairs with betaflow, and time it. `dpo_throughput.py` starts it.

Every call to betaflow's engine is in `train`. The working folder is a temporary one: the trainer
writes its checkpoints below it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from _measure import (
    PRECISIONS,
    between,
    device_name,
    now,
    peak_bytes,
    progress,
    read_job,
    read_jsonl,
    resident_bytes,
    stamp,
    versions,
)


def train(job: dict[str, Any], pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Reference pass and DPO steps through betaflow's public trainer.

    A step's seconds run from one `on_step` to the next (the first one's from the trainer's start),
    so that the checkpoint written after the last step is outside.
    """
    from betaflow.config import DPOTraining
    from betaflow.data.tokenise import encode
    from betaflow.policy.loading import load_policy, load_tokenizer
    from betaflow.policy.packing import all_sequences
    from betaflow.training.dpo import ReferencedPairs, dpo_objective, train_dpo
    from betaflow.training.prepare import prepare

    tokenizer = load_tokenizer(job["model"])
    chosen = [encode(tokenizer, pair["prompt"], pair["chosen"]) for pair in pairs]
    rejected = [encode(tokenizer, pair["prompt"], pair["rejected"]) for pair in pairs]
    for pair, *sides in zip(pairs, chosen, rejected, strict=True):
        if [(s.prompt, s.completion) for s in sides] != [
            (pair["prompt_ids"], pair[f"{name}_ids"]) for name in ("chosen", "rejected")
        ]:
            sys.exit(f"betaflow's tokens differ from the job's: {pair['prompt'][-80:]!r}")
    settings = DPOTraining(**{**SETTINGS[job["device"]], **of_job(job), **job["betaflow_set"]})
    precision = PRECISIONS[job["precision"]]
    before = resident_bytes()
    scorer = prepare(load_policy(job["model"]), settings, pad=tokenizer.pad_token_id)

    began = now()
    logps = all_sequences(
        scorer.eval(),
        chosen + rejected,
        budget=settings.micro_batch_tokens,
        precision=precision,
    )
    reference_seconds = now() - began
    print(f"betaflow: reference pass, {reference_seconds:.2f} s", file=sys.stderr, flush=True)
    losses: list[float] = []
    stamps: list[tuple[float, float]] = []
    peak = 0

    def on_step(row: dict[str, Any]) -> None:
        nonlocal peak
        stamps.append(stamp())
        losses.append(row["loss"])
        peak = peak_bytes()
        progress("betaflow", len(losses), job["steps"], stamps[-1][0] - stamps[-2][0], row["loss"])

    stamps.append(stamp())
    train_dpo(
        scorer,
        ReferencedPairs([str(i) for i in range(len(pairs))], chosen, rejected, *logps.chunk(2)),
        ReferencedPairs([], [], [], logps[:0], logps[:0]),
        settings,
        label="benchmark",
        objective=dpo_objective(settings, job["beta"]),
        peak_rate=job["learning_rate"],
        seed=job["seed"],
        precision=precision,
        fingerprint="benchmark",
        on_step=on_step,
    )
    return {
        "losses": losses,
        **between(stamps),
        "reference_seconds": reference_seconds,
        "peak_bytes": peak,
        "before_model_bytes": before,
        "parameters": sum(p.numel() for p in scorer.policy.parameters()),
        "settings": {**settings.model_dump(), "precision": precision, "packs": scorer.packs},
    }


def of_job(job: dict[str, Any]) -> dict[str, Any]:
    """What both libraries are told alike."""
    return {
        "optimizer": "adamw",
        "warmup_steps": 0,
        "schedule": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": job["max_grad_norm"],
        "batch_size": job["batch_size"],
        "epochs": 1.0,
        "threads": job["threads"],
    }


PLAIN_DPO: dict[str, Any] = {
    "loss": "sigmoid",
    "label_smoothing": 0.0,
    "length_normalised": False,
    "margin": 0.0,
    "sft_weight": 0.0,
    "lora": None,
    "processes": 1,
    "checkpoint_seconds": 1e9,
    "keep_checkpoints": 2,
    "eval_every": None,
    "patience": None,
    "sample_every": None,
    "gradient_checkpointing": False,
    "compile": False,
}
# Tokens of a forward pass: what speed asks for on each device.
SETTINGS = {
    "cpu": {**PLAIN_DPO, "micro_batch_tokens": 2048},
    "cuda": {**PLAIN_DPO, "micro_batch_tokens": 16384},
}


def main() -> None:
    job = read_job()
    result = train(job, read_jsonl(job["pairs"]))
    result |= {"device": device_name(), "versions": versions("torch", "transformers")}
    Path(job["out"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
