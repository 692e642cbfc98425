"""The stage `sample`: an arm's draws are its own, and the same each time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from betaflow.config import Params
from betaflow.io import write_jsonl
from betaflow.policy.loading import load_reward_model, load_tokenizer, save_model
from betaflow.sampling.engine import draw_seed
from tasks.sample import samples

STARTS = ["the film", "i saw a movie", "this", "the plot was", "an actor", "we all"]


@pytest.fixture
def params(tiny: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Of a workspace with a reference, a reward model, and prompts."""
    shutil.copytree(tiny, tmp_path / "out/sft")
    reward = load_reward_model(tiny, new_head_seed=1)
    save_model(reward, load_tokenizer(tiny), tmp_path / "out/reward")
    for name, texts in (("eval", STARTS), ("ood", [])):
        rows = [{"id": f"{name}-{n}", "prompt": text} for n, text in enumerate(texts)]
        write_jsonl(tmp_path / f"out/data/prompts_{name}.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    return read(repository, prompts=len(STARTS))


def read(repository: Path, **changes: Any) -> Params:
    values: dict[str, Any] = yaml.safe_load((repository / "params.yaml").read_text())
    values["sample"] |= {
        "engine": "hf", "max_new_tokens": 8, "threads": 1, "seeds": [0, 1, 2],
        "temperatures": [0.0, 1.0], **changes,
    }  # fmt: skip
    return Params.model_validate(values)


def drawn(table: pd.DataFrame, temperature: float) -> pd.Series:
    keys = ["prompt_id", "seed"]
    return table[table["temperature"] == temperature].set_index(keys)["completion"].sort_index()


def test_other_arms_draw_independently_of_the_same_weights(params: Params) -> None:
    one, again, other = (samples(params, name, "out/sft") for name in ("a", "a", "b"))
    pd.testing.assert_frame_equal(one, again)
    assert (drawn(one, 0.0) == drawn(other, 0.0)).all()
    # Three seeds of a prompt are three draws, and none is the other arm's of that seed.
    assert drawn(one, 1.0).groupby("prompt_id").nunique().min() == 3
    assert (drawn(one, 1.0) != drawn(other, 1.0)).mean() > 0.9


def test_fewer_prompts_draw_the_same_of_those_that_stay(params: Params, repository: Path) -> None:
    some = drawn(samples(read(repository, prompts=4), "a", "out/sft"), 1.0)
    every = drawn(samples(params, "a", "out/sft"), 1.0)
    assert some.index.get_level_values("prompt_id").nunique() == 4
    pd.testing.assert_series_equal(every[some.index], some)


def test_every_part_of_a_draw_s_name_changes_its_seed() -> None:
    names = [("sample", arm, seed, f"p{n}") for arm in "ab" for seed in (0, 1) for n in range(50)]
    found = {draw_seed(*parts) for parts in names}
    assert len(found) == len(names)
    assert all(0 <= seed < 2**63 for seed in found)
