"""Loading and saving models, in float32 master weights with dropout off."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import (
    disable_progress_bar,
    get_verbosity,
    set_verbosity,
    set_verbosity_error,
)

from betaflow.errors import UserError
from betaflow.policy.linear import use_onednn

disable_progress_bar()  # of loading and saving: seconds at most, and a line for each shard


def device() -> torch.device:
    """The GPU that this process may use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(precision: str) -> AbstractContextManager[Any]:
    """bfloat16 autocast over float32 weights, or nothing for `float32`."""
    if precision == "bfloat16":
        return torch.autocast(device().type, dtype=torch.bfloat16)
    return nullcontext()


def load_tokenizer(
    path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer; one without a pad token pads with EOS (padding is masked by position).

    Raises `UserError` if it has no EOS token, or ends every text (so every prompt) with it.
    """
    tokenizer = _load(AutoTokenizer, path, revision, trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {path} has no EOS token; betaflow ends completions with it"
        )
    if tokenizer("a").input_ids[-1:] == [tokenizer.eos_token_id]:
        raise UserError(
            f"the tokenizer of {path} appends EOS to every text, prompts too; load it with "
            "transformers, set its add_eos_token = False (and add_bos_token = True, if it begins "
            "texts with BOS), and save it again"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(
    path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a causal language model in float32 on this process's device, dropout off."""
    model = _load(AutoModelForCausalLM, path, revision, trust_remote_code, dtype=torch.float32)
    return _ready(model)


def load_reward_model(
    path: str | Path, *, trust_remote_code: bool = False, new_head_seed: int | None = None
) -> PreTrainedModel:
    """Load a backbone with a scalar head.

    With `new_head_seed` the head is drawn from N(0, 1/(d + 1)) (Huang et al. 2024, detail 11),
    for a model that has none yet.
    """
    verbosity = get_verbosity()
    set_verbosity_error()  # that a new head is new is no news
    try:
        model = _load(
            AutoModelForSequenceClassification,
            path,
            None,
            trust_remote_code,
            dtype=torch.float32,
            num_labels=1,
        )
    finally:
        set_verbosity(verbosity)
    if new_head_seed is not None:
        generator = torch.Generator().manual_seed(new_head_seed)
        width = model.score.weight.shape[-1]
        draw = torch.randn(model.score.weight.shape, generator=generator)
        with torch.no_grad():
            model.score.weight.copy_(draw / (width + 1) ** 0.5)
    return _ready(model)


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a `save_pretrained` folder (safetensors and tokenizer).

    What generates from it stops at the tokenizer's EOS, as the trainers' own draws do, whatever
    the base model's generation settings were.
    """
    if model.can_generate():
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def text_config(config: Any) -> Any:
    """The part of a model's config that is of text: of a model of images too it is a part."""
    part = getattr(config, "get_text_config", None)
    return part() if part else config


def _ready(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Families keep rates of their own, under many names: in the config, or in a layer.
        for holder in (module, getattr(module, "config", None)):
            for name, value in list(vars(holder).items()) if holder is not None else ():
                if "drop" in name and isinstance(value, float):
                    setattr(holder, name, 0.0)
    if getattr(text_config(model.config), "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")  # with sdpa, transformers leaves the cap out
    # Draws are the model's own distribution: no penalty or cut-off that a hub model brings.
    model.generation_config = GenerationConfig()
    use_onednn(model)
    return model.to(device())  # type: ignore[arg-type]


def _load(
    kind: Any, path: str | Path, revision: str | None, trust_remote_code: bool, **options: Any
) -> Any:
    is_folder = Path(path).is_dir()
    if not is_folder and (os.sep in str(path) and str(path).startswith((".", "/", "out"))):
        raise UserError(f"there is no model folder {path}; run `make align` to make it")
    try:
        return kind.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code, **options
        )
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{path} brings code of its own; if you trust it, set model.trust_remote_code: true"
            ) from error
        raise UserError(
            f"could not load {path}: {error}\n"
            "Check model.base (a folder, or a hub name and its revision) and the network."
        ) from error
