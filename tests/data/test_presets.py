from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from betaflow.config import arms, load_params
from betaflow.report.methods import trials

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


def keys(values: Any, prefix: str = "") -> set[str]:
    if not isinstance(values, dict):
        return {prefix}
    return {prefix}.union(*(keys(value, f"{prefix}.{key}") for key, value in values.items()))


def test_the_presets_are_there() -> None:
    assert {path.name for path in PRESETS} >= {
        "imdb.yaml",
        "hh.yaml",
        "tldr.yaml",
        "hh-sample.yaml",
    }


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_is_valid_whole_and_explained(path: Path) -> None:
    params = load_params(path)
    assert {arm.stage for arm in arms(params)} >= {"sft", "dpo", "ppo"}
    whole = keys(yaml.safe_load((ROOT / "params.yaml").read_text()))
    nested = (".data.world.", ".model.scratch.", ".promotion.margins.")  # null in some
    missing = whole - keys(yaml.safe_load(path.read_text()))
    assert all(key.startswith(nested) for key in missing)
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        text, mark, comment = line.partition("#")
        assert not text.strip() or (mark and comment.strip()), f"{path}:{number} has no comment"


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_method_has_as_many_tuning_trials(path: Path) -> None:
    found = trials(arms(load_params(path)))
    for dialless in ("sft", "preferred_ft", "best_of_n"):
        found.pop(dialless, None)
    assert len(found) > 1
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("name", ["imdb", "hh", "tldr"])
def test_the_papers_settings(name: str) -> None:
    dpo = load_params(ROOT / "presets" / f"{name}.yaml").dpo
    training = dpo.training
    assert (training.optimizer, training.schedule, training.warmup_steps) == (
        "rmsprop",
        "constant",
        150,
    )
    assert (training.batch_size, training.max_grad_norm) == (64, 10.0)
    assert dpo.grid.learning_rate == [1e-6]
    assert (0.5 if name == "tldr" else 0.1) in dpo.grid.beta
