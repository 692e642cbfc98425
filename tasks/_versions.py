"""Making a version: an arm's weights, its model card and its evidence, whole before it is known."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from betaflow.config import Arm, Params
from betaflow.io import LOCAL
from tasks._evidence import Evidence, inputs, model_files, write
from tasks._inputs import fingerprint
from tasks._registry import CONTENT, EVIDENCE, FOLDER, IN_USE, REPLACES, TAG, Registry

CARD = "README.md"
LOGGED = "models:/"  # what the address of a logged model begins with, before its id


def register(
    params: Params,
    registry: Registry,
    arm: Arm,
    run_id: str,
    summary: Mapping[str, Any],
    found: Evidence,
    card: Callable[[str], str],
) -> int:
    """A version with these weights, this evidence and this card, reserved; its number.

    One that holds the same already, that no promotion is at and that never became champion, gets
    the new card: weights are not copied again each time a challenger is refused.

    Args:
        card: makes the card's text, from the address that MLflow loads these weights by.
    """
    tags = {
        f"{TAG}arm": arm.name,
        f"{TAG}fingerprint": summary["fingerprint"],
        CONTENT: str(found.content),
        **{f"{TAG}inputs.{part}": value for part, value in inputs(params).items()},
    }
    (LOCAL / "tmp").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=LOCAL / "tmp") as place:
        same = registry.reserve(lambda: _unused(registry, tags))
        if same is not None:
            found_as = registry.client.get_model_version(registry.model, str(same))
            _log_card(registry, found_as.source, card, Path(place))
            return same
        (evidence := Path(place, FOLDER)).mkdir()
        write(found, params, evidence)
        kept = {EVIDENCE: fingerprint([evidence], None)}
        logged = _log_weights(arm, run_id, summary, Path(place))
        _log_card(registry, LOGGED + logged.model_id, card, Path(place))
        registry.client.log_model_artifacts(logged.model_id, str(evidence), FOLDER)
    _create(registry)
    version = registry.client.create_model_version(
        registry.model,
        logged.model_uri,
        run_id,
        tags=tags | kept | {IN_USE: "true"},
        model_id=logged.model_id,
    )
    return int(version.version)


def _unused(registry: Registry, tags: Mapping[str, str]) -> int | None:
    """The newest version with these tags that nobody uses and that was never about to be champion.

    None: there is none.
    """
    fit = (
        one.number
        for one in registry.versions()
        if one.source.startswith(LOGGED)  # not of a run's artifacts, as older versions are
        and REPLACES not in one.tags
        and IN_USE not in one.tags
        and all(one.tags.get(key) == value for key, value in tags.items())
    )
    return next(fit, None)


def _log_card(registry: Registry, address: str, card: Callable[[str], str], place: Path) -> None:
    file = place / CARD
    file.write_text(card(address), encoding="utf-8")
    registry.client.log_model_artifact(address.removeprefix(LOGGED), str(file))


def _log_weights(arm: Arm, run_id: str, summary: Mapping[str, Any], place: Path) -> Any:
    """Copy the model's files into the run's store, byte for byte, in MLflow's format."""
    os.environ.setdefault("MLFLOW_TRANSFORMERS_DISABLE_HUB", "true")
    import mlflow

    # It looks on the hub for the model's card and licence, and says at length that there is none.
    logging.getLogger("mlflow.transformers").setLevel(logging.ERROR)
    folder = place / arm.name
    folder.mkdir()
    for path in model_files(arm.model_dir):
        (folder / path.name).symlink_to(path.resolve())
    with mlflow.start_run(run_id=run_id):
        return mlflow.transformers.log_model(
            transformers_model=str(folder),
            name="promotion",
            task="text-generation",
            metadata={"betaflow": json.dumps(dict(summary))},
            pip_requirements=_requirements(),
        )


def _create(registry: Registry) -> None:
    from mlflow.exceptions import MlflowException

    try:
        registry.client.create_registered_model(registry.model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _requirements() -> list[str]:
    """What the model needs to be loaded: pinned to what it was made with."""
    from importlib.metadata import version

    names = ("torch", "transformers", "accelerate", "safetensors", "tokenizers")
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]
