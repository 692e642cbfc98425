"""The PPO benchmark's own model: random weights, and completions that never end.

A random model draws EOS once in a while, so its completions' lengths differ. Here one coordinate
of the residual stream is a constant, and the embeddings of EOS and pad (which the projection
shares) are far on its other side: they are never drawn, and every completion is as long as it may
be. The reward model is the same backbone with a random head.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from betaflow.policy.loading import load_policy, load_reward_model, load_tokenizer, save_model

SHAPE = {"width": 256, "layers": 4, "heads": 4}  # the DPO benchmark's


def make_models(pairs: Path, folder: Path, vocabulary: int) -> tuple[Path, Path]:
    """Write a policy and a reward model below `folder`; returns their folders.

    Args:
        pairs: text for the tokenizer.
        vocabulary: of the projection, also where the text gives the tokenizer fewer tokens.
    """
    policy, reward = folder / "policy", folder / "reward"
    script = Path(__file__).resolve().parent / "make_model.py"
    sizes = {"vocabulary": vocabulary, **SHAPE}
    shape = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, str(script), "--pairs", str(pairs), "--out", str(policy), *shape]
    subprocess.run(command, check=True)
    tokenizer = load_tokenizer(policy)
    model: Any = load_policy(policy)
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        embeddings[:, 0] = 1.0
        embeddings[[tokenizer.eos_token_id, tokenizer.pad_token_id], 0] = -100.0
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter[0] = 0.0  # no layer writes to the coordinate
    save_model(model, tokenizer, policy)
    save_model(load_reward_model(policy, new_head_seed=0), tokenizer, reward)
    return policy, reward
