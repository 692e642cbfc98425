"""Worker: train PPO on the job's prompts with TRL's PPOTrainer, and time it.

`ppo_throughput.py` starts it, in TRL's own environment, without betaflow. It needs TRL 1.12.0, the
last release that has PPO. The job's `side` says how the work is cut up:

- `defaults`: as PPOConfig has it: 8 episodes a pass of the update, 64 a pass of the rollout.
- `micro`: as many episodes a pass of the update as betaflow, the whole rollout at once.
- `whole`: a mini-batch a pass of the update, the whole rollout at once.

What is trained is the same on all: prompts and their order, episodes and steps, T = 1, AdamW's
hyper-parameters, a constant rate; a completion ends at EOS (`stop_token="eos"`).
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measure import device_name, read_job, read_jsonl, resident_bytes, versions
from _rollouts import Drawn, Watch, drawn_figures
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PrinterCallback,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class Noted(PPOTrainer):
    """PPOTrainer that keeps what it logs; it computes the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.rows: list[dict[str, float]] = []
        super().__init__(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        self.rows.append(dict(logs))
        super().log(logs, *args, **kwargs)


class Clock(TrainerCallback):
    """Marks the start of training and the end of every iteration."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.watch.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.watch.iteration_ends()


def config(job: dict[str, Any]) -> PPOConfig:
    """The side's PPOConfig: what makes the two libraries' work the same, then the side's own."""
    batch, mini = job["batch_size"], job["batch_size"] // job["minibatches"]
    same = {
        "output_dir": "trl",
        "use_cpu": job["device"] == "cpu",
        "bf16": job["precision"] == "bf16",
        "total_episodes": job["rollouts"] * batch,
        "num_ppo_epochs": job["epochs"],
        "num_mini_batches": job["minibatches"],
        "response_length": job["max_new_tokens"],
        "stop_token": "eos",
        "temperature": 1.0,
        "missing_eos_penalty": job["missing_eos_penalty"],
        "kl_coef": job["kl_coefficient"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "adam_epsilon": 1e-5,
        "weight_decay": 0.0,
        "seed": job["seed"],
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    sides: dict[str, dict[str, Any]] = {
        "defaults": {},
        "micro": {"per_device_train_batch_size": min(job["micro_batch_size"], mini)},
        "whole": {"per_device_train_batch_size": mini},
    }
    own = sides[job["side"]]
    if own:
        own |= {"local_rollout_forward_batch_size": batch, "num_sample_generations": 0}
        own |= job["trl_set"]
    micro = own.get("per_device_train_batch_size", 8)
    if mini % micro:
        sys.exit(f"a mini-batch of {mini} episodes is not a multiple of TRL's {micro} a pass")
    return PPOConfig(**{**same, **own, "gradient_accumulation_steps": batch // micro})


def make_trainer(job: dict[str, Any], prompts: list[list[int]], watch: Watch) -> Noted:
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")

    def language_model() -> Any:
        model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
        # Draws are the model's own distribution. Without a pad token `generate` fills with EOS.
        model.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id)
        return model

    def scalar_model() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(
            job["reward"], num_labels=1, dtype=torch.float32
        )

    trainer = Noted(
        args=config(job),
        processing_class=tokenizer,
        model=language_model(),
        ref_model=language_model().eval(),
        reward_model=scalar_model().eval(),
        value_model=scalar_model(),
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        callbacks=[Clock(watch)],
    )
    trainer.remove_callback(PrinterCallback)
    # In the job's order, not shuffled. With its own loader TRL 1.12 takes an optimizer step after
    # every pass, instead of every mini-batch, in the last iteration of each epoch of the prompts
    # (accelerate ends accumulation with the loader).
    trainer.dataloader = DataLoader(
        trainer.train_dataset, batch_size=job["batch_size"], collate_fn=trainer.data_collator
    )
    # Passes of a mini-batch. TRL 1.12 counts those of the whole rollout: with many mini-batches of
    # many passes it would take one step an epoch.
    trainer.accelerator.gradient_accumulation_steps //= job["minibatches"]
    return trainer


def note_rollouts(watch: Watch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Stamp TRL's rollouts and scorings; returns a list that gets each rollout's (queries, all)."""
    drawn: list[tuple[torch.Tensor, torch.Tensor]] = []

    def around(function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def stamped(*args: Any, **kwargs: Any) -> Any:
            found = function(*args, **kwargs)
            watch.ends(phase)
            if phase == "rollout":
                drawn.append((args[1], found[0]))
            return found

        return stamped

    ppo_trainer.batch_generation = around(ppo_trainer.batch_generation, "rollout")
    ppo_trainer.get_reward = around(ppo_trainer.get_reward, "scoring")
    return drawn


def episodes(queries: torch.Tensor, whole: torch.Tensor, eos: int, pad: int) -> Drawn:
    """Prompts and completions without padding. TRL too lets a completion end at EOS, or at pad."""
    found = []
    for query, sequence in zip(queries.tolist(), whole.tolist(), strict=True):
        completion = sequence[len(query) :]
        ends = [n + (token == eos) for n, token in enumerate(completion) if token in (eos, pad)]
        found.append(([i for i in query if i != pad], completion[: min(ends, default=None)]))
    return found


def main() -> None:
    job = read_job()
    prompts = [row["ids"] for row in read_jsonl(job["ordered"])]
    watch = Watch(f"trl {job['side']}", job["rollouts"])
    before = resident_bytes()
    if job["precision"] == "bf16":
        # PPOTrainer hands its config's bf16 to nobody; this is how accelerate's launcher tells it.
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    drawn = note_rollouts(watch)
    trainer = make_trainer(job, prompts, watch)
    if job["side"] != "defaults":
        # TRL collects garbage twice an iteration, over all that the imports left: 0.3 s each time.
        gc.freeze()
    trainer.train()
    tokens = trainer.processing_class
    rollouts = [episodes(*one, tokens.eos_token_id, tokens.pad_token_id) for one in drawn]
    result = {
        **watch.figures(),
        **drawn_figures(rollouts, tokens.eos_token_id),
        "scores": [row["objective/scores"] for row in trainer.rows],
        "kl": [row["objective/kl"] for row in trainer.rows],
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "before_model_bytes": before,
        "settings": json.loads(trainer.args.to_json_string()),
        "device": device_name(),
        "versions": versions("torch", "transformers", "trl", "accelerate", "datasets"),
    }
    Path(job["out"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
