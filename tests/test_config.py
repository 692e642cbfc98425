"""params.yaml: every mistake is one message that names the key."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from betaflow.config import Params, arms, load_params, parse_params
from betaflow.errors import UserError


@pytest.fixture
def values(repository: Path) -> dict[str, Any]:
    return copy.deepcopy(yaml.safe_load((repository / "params.yaml").read_text()))


def test_the_default_has_four_betas_a_ppo_arm_and_sft(params: Params) -> None:
    methods = [arm.method for arm in arms(params)]
    assert methods[0] == "sft"
    assert len(params.dpo.grid.beta) >= 4
    assert "ppo" in methods


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dpo.training.epoch", 1, "dpo.training.epoch: unknown key"),
        ("dpo.grid.beta", [], "dpo.grid.beta: must list at least one value"),
        ("dpo.grid.beta", [0.1, 0.1], "dpo.grid: `beta` lists a value twice"),
        ("dpo.grid.beta", ["small"], "dpo.grid.beta.0:"),
        ("dpo.grid.beta", [-1.0], "dpo.grid.beta.0:"),
        ("sft.learning_rate", "1e-3", "sft.learning_rate: Input should be a valid number"),
        ("sft.batch_size", 1.5, "sft.batch_size:"),
        ("data.eval_fraction", 1.0, "data.eval_fraction:"),
        ("sample.temperatures", [0.5], "sample: `temperatures` must hold 1.0"),
        ("sample.engine", "vlm", "sample.engine:"),
        ("data.source", "hh", "data: source 'hh' needs `path`"),
        ("compare.judge", "reward", "compare.judge:"),
        ("promotion.temperature", 0.7, "promotion.temperature must be one of"),
        ("promotion.methods", ["dqo"], "promotion.methods.0"),
        ("sft.block_tokens", 512, "sft.block_tokens = 512 is more than"),
        ("pairs.max_completion_tokens", 250, "pairs.max_completion_tokens = 314 is more"),
        ("data.text", "/tmp/text.txt", "dvc import-url /tmp/text.txt data/"),
        ("data.text", "data/../text.txt", "is not in data/"),
        ("model.base", "./gpt2", "model.base './gpt2' is not in data/"),
        ("pairs.source", "human", "the embedded world has no human pairs"),
        ("pairs.truncation", "keep_middle", "pairs.truncation: Input should be 'drop', 'keep_"),
        ("pairs.truncation", "keep_end", "pairs: `truncation` is of human pairs"),
        ("pairs.pairs_per_prompt", 7, "pairs: 4 samples make 6 pairs at most"),
        ("model.scratch.heads", 3, "model.scratch: `hidden` must be"),
        ("model.scratch.hidden", 64, "vLLM's attention on a CPU"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], key: str, value: Any, message: str) -> None:
    section = values
    *path, last = key.split(".")
    for part in path:
        section = section[part]
    section[last] = value
    with pytest.raises(UserError) as error:
        parse_params(values)
    assert message in str(error.value)
    assert "Traceback" not in str(error.value)


def test_every_wrong_key_is_in_the_one_message(values: dict[str, Any]) -> None:
    del values["sft"]["seed"]
    values["ppo"]["training"]["clip"] = 0
    with pytest.raises(UserError) as error:
        parse_params(values)
    assert "sft.seed: this key is missing" in str(error.value)
    assert "ppo.training.clip" in str(error.value)


def test_text_that_is_not_yaml_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("run: [1, 2")
    with pytest.raises(UserError, match="not YAML"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(UserError, match="missing"):
        load_params(tmp_path / "none.yaml")
    (tmp_path / "params.yaml").write_text("")
    with pytest.raises(UserError, match="whole file"):
        load_params(tmp_path / "params.yaml")


def test_arms_are_named_as_dvc_names_their_outputs(
    repository: Path, values: dict[str, Any], tmp_path: Path
) -> None:
    from dvc.repo import Repo

    values["dpo"]["grid"] = {
        "beta": [0.1, 1, 2.0],
        "learning_rate": [1.0e-6, 0.001],
        "seed": [0, 3],
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "dvc.yaml").write_text((repository / "dvc.yaml").read_text())
    Repo.init(str(tmp_path), no_scm=True)
    found = {
        str(Path(out.fs_path).relative_to(tmp_path))
        for stage in Repo(str(tmp_path)).index.stages
        for out in stage.outs
    }
    sweep = arms(load_params(tmp_path / "params.yaml"))
    assert len(sweep) == 1 + 3 * 2 * 2 + 1
    for arm, (folder, ending) in product(sweep, [("samples", "parquet"), ("benchmark", "json")]):
        assert f"out/{folder}/{arm.name}.{ending}" in found
    assert {str(arm.model_dir) for arm in sweep} <= found
