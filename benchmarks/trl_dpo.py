"""Worker: train the job's pairs with TRL's DPOTrainer, and time it. `dpo_throughput.py` starts it.

Runs in TRL's own environment, without betaflow. The job's `side` says which settings:

- `defaults`: DPOConfig as it comes. In TRL 1.16 that is gradient checkpointing, bf16 autocast, a
  second model as the reference run inside every step, metrics logged every 10 steps and the fused
  AdamW.
- `best`: the reference precomputed, no gradient checkpointing, the precision asked for, no NaN
  filter and no logs. See benchmarks/README.md for what else was looked at.
- `tuned`: the same, one pair a pass, with accumulation.

What is trained is the same on both: AdamW's hyper-parameters, a constant rate, the order.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from _measure import (
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
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

# TRL pads to the longest of a pass, and a CPU gains nothing from larger ones.
ONE_PAIR = {"per_device_train_batch_size": 1, "precompute_ref_batch_size": 1}


class Timed(DPOTrainer):
    """DPOTrainer that keeps its losses and times its reference pass; it computes the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.losses: list[torch.Tensor] = []
        self.reference_seconds = 0.0
        self.reference_batches = 0
        super().__init__(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        self.losses.append(loss.detach())
        return loss

    def compute_ref_log_probs(self, *args: Any, **kwargs: Any) -> Any:
        self.reference_batches += 1
        return super().compute_ref_log_probs(*args, **kwargs)

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
        began = now()
        dataset = super()._precompute_ref_logps(*args, **kwargs)
        self.reference_seconds = now() - began
        if not self.reference_batches:
            sys.exit("TRL read the reference's log-probabilities from a cache: nothing was timed")
        return dataset


class Clock(TrainerCallback):
    """Time stamps at the start of training and after every optimizer step."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.stamps: list[tuple[float, float]] = []
        self.peak = 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.stamps.append(stamp())

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        self.stamps.append(stamp())
        self.peak = peak_bytes()
        seconds = self.stamps[-1][0] - self.stamps[-2][0]
        progress(self.label, state.global_step, state.max_steps, seconds, None)


def config(job: dict[str, Any]) -> DPOConfig:
    """The side's DPOConfig: what makes the two libraries' work the same, then the side's own."""
    batch = job["batch_size"]
    same = {
        "output_dir": "trl",
        "use_cpu": job["device"] == "cpu",
        "per_device_train_batch_size": batch,
        "max_steps": job["steps"],
        "train_sampling_strategy": "sequential",
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": job["max_grad_norm"],
        "beta": job["beta"],
        "seed": job["seed"],
        "report_to": "none",
        "save_strategy": "no",  # the last step's save would be outside the clock anyway
        "disable_tqdm": True,
    }
    if job["max_length"] > 1024:
        same["max_length"] = job["max_length"]  # TRL's 1024 would cut what betaflow keeps whole
    best: dict[str, Any] = {}
    if job["side"] != "defaults":
        best = {
            "bf16": job["precision"] == "bf16",
            "gradient_checkpointing": False,
            "precompute_ref_log_probs": True,
            # Nothing here is longer than --max-length. With a number, TRL's cache of the reference
            # is keyed by every argument, beta and the rate too; with None by data and weights.
            "max_length": None,
            "logging_strategy": "no",
            "logging_nan_inf_filter": False,  # it looks at every loss, and the GPU waits
        }
        best |= _fast_on_gpu(job) if job["device"] == "cuda" else {}
        best |= ONE_PAIR if job["side"] == "tuned" else {}
        best |= job["trl_set"]
        micro = best.get("per_device_train_batch_size", batch)
        if batch % micro:
            sys.exit(f"--batch-size {batch} is not a multiple of TRL's micro-batch of {micro}")
        best["gradient_accumulation_steps"] = batch // micro
    return DPOConfig(**{**same, **best})


def _fast_on_gpu(job: dict[str, Any]) -> dict[str, Any]:
    """Batches made by workers; Liger's layers and FlashAttention 2 where they are installed."""
    found: dict[str, Any] = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
    if importlib.util.find_spec("liger_kernel"):
        found["use_liger_kernel"] = True
    if job["precision"] == "bf16" and importlib.util.find_spec("flash_attn"):
        found["model_init_kwargs"] = {"attn_implementation": "flash_attention_2"}
    return found


def require_same_tokens(dataset: Dataset, pairs: list[dict[str, Any]]) -> None:
    """Stop unless TRL trains on the very tokens that betaflow trains on."""
    if len(dataset) != len(pairs):
        sys.exit(f"TRL keeps {len(dataset)} of the job's {len(pairs)} pairs")
    for row, pair in zip(dataset, pairs, strict=True):
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            if row[name] != pair[name]:
                sys.exit(
                    f"TRL's {name} differ from betaflow's for the prompt that ends in "
                    f"{pair['prompt'][-80:]!r}:\n{row[name]}\n{pair[name]}"
                )


def main() -> None:
    job = read_job()
    pairs = read_jsonl(job["ordered"])
    texts = [{name: pair[name] for name in ("prompt", "chosen", "rejected")} for pair in pairs]
    label = f"trl {job['side']}"
    clock = Clock(label)
    arguments = config(job)
    before = resident_bytes()
    trainer = Timed(
        model=job["model"],
        args=arguments,
        train_dataset=Dataset.from_list(texts),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    require_same_tokens(trainer.train_dataset, pairs)
    if trainer.reference_batches:
        print(f"{label}: reference pass, {trainer.reference_seconds:.2f} s", file=sys.stderr)
    trainer.losses.clear()
    trainer.train()
    micro = torch.stack(trainer.losses).float().cpu().view(job["steps"], -1)
    result = {
        "losses": micro.mean(1).tolist(),
        **between(clock.stamps),
        "reference_seconds": trainer.reference_seconds,
        "peak_bytes": clock.peak,
        "before_model_bytes": before,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "settings": json.loads(arguments.to_json_string()),
        "device": device_name(),
        "versions": versions("torch", "transformers", "trl", "accelerate", "datasets"),
    }
    Path(job["out"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
