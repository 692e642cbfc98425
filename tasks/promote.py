"""Registering an arm's model in MLflow, weights and all, and moving the alias `champion`."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from betaflow.config import Arm, Params, arms
from betaflow.errors import UserError
from betaflow.io import read_json
from betaflow.policy.loading import load_tokenizer
from tasks import tracking


class Promotion(NamedTuple):
    """What was promoted, and the figure that it was chosen by."""

    arm: str
    model: str
    version: int
    metric: str
    value: float | None


def choose(params: Params, name: str | None) -> tuple[Arm, float | None]:
    """The named arm, or the one with the highest `promotion.metric` among its methods."""
    rules = params.promotion
    rows = {
        row["arm"]: row
        for row in read_json("out/compare/estimates.json")["rows"]
        if row["temperature"] == rules.temperature
    }
    if not rows:
        raise UserError(
            f"promotion.temperature is {rules.temperature}, at which nothing was sampled; "
            "choose one of sample.temperatures"
        )
    if rules.metric not in next(iter(rows.values())):
        raise UserError(f"promotion.metric {rules.metric!r} is no column of out/compare/table.csv")
    known = {arm.name: arm for arm in arms(params) if arm.name in rows and arm.has_model}
    if name is not None:
        if name not in known:
            raise UserError(f"no model {name!r} was compared; there are {', '.join(known)}")
        return known[name], rows[name][rules.metric]
    values = {
        arm.name: rows[arm.name][rules.metric]
        for arm in known.values()
        if arm.method in rules.methods and rows[arm.name][rules.metric] is not None
    }
    if not values:
        raise UserError("no arm of promotion.methods has a value of promotion.metric")
    best = max(values, key=lambda arm: values[arm])
    return known[best], values[best]


def _require_compared(arm: Arm, summary: dict[str, Any]) -> None:
    """Stop if the arm's model is not the one that was compared."""
    compared = read_json("out/compare/estimates.json")["fingerprints"][arm.name]
    if compared != summary["fingerprint"]:
        raise UserError(f"{arm.name} was trained again after the comparison; run `make align`")


def promote_arm(params: Params, name: str | None = None) -> Promotion:
    """Register the chosen arm and make it champion.

    The version is whole before the alias moves, so a promotion that is cut off leaves the old
    champion in place.
    """
    arm, value = choose(params, name)
    summary = read_json(arm.model_dir / "summary.json")
    _require_compared(arm, summary)
    tracker = tracking.Tracker(params)
    run = tracker.arm_run(summary)
    version = _register(params, arm, run, summary, value)
    model = params.run.registered_model
    tracker.client.set_registered_model_alias(model, "champion", str(version))
    return Promotion(arm.name, model, version, params.promotion.metric, value)


def _register(
    params: Params, arm: Arm, run: Any, summary: dict[str, Any], value: float | None
) -> int:
    """Log the model with its weights under the arm's run; return the new version's number."""
    os.environ.setdefault("MLFLOW_TRANSFORMERS_DISABLE_HUB", "true")
    import mlflow
    import torch
    from transformers import AutoModelForCausalLM, pipeline

    folder = arm.model_dir
    trust = params.model.trust_remote_code
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=trust
    )
    tokenizer = load_tokenizer(folder, trust_remote_code=trust)
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)  # type: ignore[call-overload]
    with mlflow.start_run(run_id=run.info.run_id):
        logged = mlflow.transformers.log_model(
            transformers_model=generator,
            name="champion",
            task="text-generation",
            registered_model_name=params.run.registered_model,
            tags={"betaflow.arm": arm.name, "betaflow.fingerprint": summary["fingerprint"]},
            metadata={"betaflow": json.dumps({**summary, params.promotion.metric: value})},
            pip_requirements=_requirements(),
        )
    return int(logged.registered_model_version)


def _requirements() -> list[str]:
    """What the model needs to be loaded: pinned to what it was made with."""
    from importlib.metadata import version

    names = ("torch", "transformers", "accelerate", "safetensors", "tokenizers")
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]
