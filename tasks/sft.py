"""Stage `sft`: supervised fine-tuning of the base model -> out/sft, the reference policy."""

from __future__ import annotations

from typing import Any

from betaflow.config import Params, load_params
from betaflow.data.chat import render_text
from betaflow.errors import UserError
from betaflow.io import read_jsonl
from betaflow.policy.loading import load_policy, load_tokenizer
from betaflow.training.sft import train_sft
from tasks import tracking
from tasks._inputs import stage_fingerprint
from tasks._main import run, set_threads
from tasks._training import finish


def main() -> None:
    """Train the reference policy."""
    params = load_params()
    set_threads(params.sft.threads)
    rows = {name: read_jsonl(f"out/data/sft_{name}.jsonl") for name in ("train", "eval")}
    if len(rows["train"]) < 2:
        raise UserError("there is no SFT text in out/data; see data.text in params.yaml")
    model, tokenizer = _base(params, [_plain(row) for row in rows["train"]])
    documents = {
        name: [
            [*tokenizer(render_text(tokenizer, row)).input_ids, tokenizer.eos_token_id]
            for row in found
        ]
        for name, found in rows.items()
    }
    settings = {"model": params.model.model_dump(), "sft": params.sft.model_dump()}
    identity = stage_fingerprint("sft", settings)
    about: dict[str, Any] = {
        "arm": "sft",
        "method": "sft",
        "beta": None,
        "learning_rate": params.sft.learning_rate,
        "seed": params.sft.seed,
        "fingerprint": identity,
        "settings": settings,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    with tracking.training_run(params, about) as log:
        trained, figures = train_sft(
            model,
            documents["train"],
            documents["eval"],
            params.sft,
            pad=tokenizer.pad_token_id,
            precision=params.model.precision,
            fingerprint=identity,
            on_step=log.step,
        )
        finish("out/sft", model, tokenizer, trained, figures, about, log)


def _plain(row: dict[str, Any]) -> str:
    """A document's text before there is a tokenizer (and so a chat template)."""
    return str(row["text"]) if "text" in row else "\n\n".join(m["content"] for m in row["messages"])


def _base(params: Params, texts: list[str]) -> tuple[Any, Any]:
    model = params.model
    if model.base != "scratch":
        options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
        return load_policy(model.base, **options), load_tokenizer(model.base, **options)  # type: ignore[arg-type]
    from betaflow.policy.loading import device
    from betaflow.policy.scratch import make_model, train_tokenizer

    assert model.scratch is not None
    tokenizer = train_tokenizer(texts, model.scratch.vocabulary)
    return make_model(model.scratch, tokenizer, params.sft.seed).to(device()), tokenizer  # type: ignore[arg-type]


if __name__ == "__main__":
    run(main)
