"""The stages `optimum` and `best_of_n`: the same draws whatever stopped them; the best of them."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import tasks.best_of_n
import tasks.optimum
from betaflow.errors import UserError
from betaflow.evaluation.best_of_n import best_of_n_kl
from betaflow.io import write_jsonl
from betaflow.policy.loading import load_reward_model, load_tokenizer, save_model
from betaflow.worlds.sentiment import gold_reward
from tasks._main import forget_checkpoints

PROMPTS, DRAWS = 5, 30
FILE = Path("out/optimum/draws.parquet")


@pytest.fixture
def here(
    tiny: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """A workspace that the stages run in, two prompts a part; its params."""
    for name in ("betaflow", "tasks", "dvc.yaml"):
        (tmp_path / name).symlink_to(repository / name)
    shutil.copytree(tiny, tmp_path / "out/sft")
    reward = load_reward_model(tiny, new_head_seed=1)
    save_model(reward, load_tokenizer(tiny), tmp_path / "out/reward")
    starts = ["the film", "i saw a movie", "this", "the plot was", "an actor"]
    rows = [{"id": f"p{n}", "prompt": text} for n, text in enumerate(starts[:PROMPTS])]
    write_jsonl(tmp_path / "out/data/prompts_eval.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks.optimum, "PART", 2 * DRAWS)
    values: dict[str, Any] = yaml.safe_load((repository / "params.yaml").read_text())
    values["sample"] |= {"engine": "hf", "max_new_tokens": 8, "threads": 1, "seeds": [7, 3]}
    values["optimum"]["samples"] = DRAWS
    write(values)
    return values


def write(values: dict[str, Any]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(values))


def parts() -> list[str]:
    return sorted(path.name for path in tasks.optimum.PARTS.glob("*/*"))


def test_killed_at_any_part_it_ends_in_the_same_bytes(
    here: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks.optimum.main()
    expected = FILE.read_bytes()
    assert parts() != []  # until DVC has recorded it: the stage after it removes them
    forget_checkpoints("optimum")
    assert parts() == []
    table = pd.read_parquet(FILE)
    assert list(table) == [*tasks.optimum.COLUMNS, "gold_reward", "reward_model"]
    assert table["prompt_id"].tolist() == [f"p{n}" for n in range(PROMPTS) for _ in range(DRAWS)]
    assert table["draw"].tolist() == list(range(DRAWS)) * PROMPTS
    assert table["completion"].nunique() > 0.9 * len(table)  # every draw has a seed of its own
    first = table.iloc[0]
    assert first["gold_reward"] == gold_reward("the film" + first["completion"])
    assert table["reward_model"].nunique() > 0.9 * len(table)

    writes, allowed = tasks.optimum._write, [0]

    def dying(*arguments: Any) -> None:
        if not allowed[0]:
            raise SystemExit(137)
        allowed[0] -= 1
        writes(*arguments)

    monkeypatch.setattr(tasks.optimum, "_write", dying)
    FILE.unlink()
    for left in (1, 3, 1):  # in the draws, at the first of the scores, in the scores
        allowed[0] = left
        with pytest.raises(SystemExit):
            tasks.optimum.main()
    assert [name.split("-")[0] for name in parts()] == ["drawn"] * 3 + ["scored"] * 2
    assert not FILE.exists()
    allowed[0] = 1  # enough for what is left, and no more
    tasks.optimum.main()
    assert FILE.read_bytes() == expected
    FILE.unlink()  # stopped while DVC recorded it: nothing is drawn again
    tasks.optimum.main()
    assert FILE.read_bytes() == expected


def test_parts_of_other_inputs_are_not_used(
    here: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(tasks.optimum, "_score", stop)
    with pytest.raises(SystemExit):
        tasks.optimum.main()
    (before,) = tasks.optimum.PARTS.iterdir()
    here["sample"]["logprob_tolerance"] = 0.5  # what is drawn does not depend on it
    write(here)
    with pytest.raises(SystemExit):
        tasks.optimum.main()
    assert list(tasks.optimum.PARTS.iterdir()) == [before]
    here["sample"]["max_new_tokens"] = 4
    write(here)
    with pytest.raises(SystemExit):
        tasks.optimum.main()
    (after,) = tasks.optimum.PARTS.iterdir()
    assert after != before


def test_draws_of_other_weights_stop_the_stage(
    here: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    here["sample"]["logprob_tolerance"] = 1e-12
    write(here)
    with pytest.raises(UserError, match="hf on out/sft: the engine's log-probabilities differ"):
        tasks.optimum.main()


def test_without_draws_nothing_is_loaded(
    here: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    here["optimum"]["samples"] = 0
    write(here)
    shutil.rmtree("out/sft")
    tasks.optimum.main()
    table = pd.read_parquet(FILE)
    assert table.empty
    assert list(table) == [*tasks.optimum.COLUMNS, "gold_reward", "reward_model"]


@pytest.mark.parametrize("scorer", ["gold", "reward_model"])
def test_the_best_of_each_seed_s_own_draws(here: dict[str, Any], scorer: str) -> None:
    random = np.random.default_rng(0)
    names = ["b", "a"]
    draws = pd.DataFrame(
        {
            "prompt_id": np.repeat(names, DRAWS),
            "draw": list(range(DRAWS)) * 2,
            "completion": [f" {name} {n}" for name in names for n in range(DRAWS)],
            "finish_reason": "stop",
            "completion_tokens": 3,
            "gold_reward": random.integers(0, 4, 2 * DRAWS).astype(float),  # many are equal
            "reward_model": random.normal(size=2 * DRAWS),
        }
    )
    FILE.parent.mkdir()
    draws.to_parquet(FILE)
    samples = [("b", "in", "so"), ("a", "in", "it"), ("o", "out", "no")]
    Path("out/samples").mkdir()
    pd.DataFrame(samples, columns=["prompt_id", "domain", "prompt"]).to_parquet(
        "out/samples/sft.parquet"
    )
    tasks.best_of_n.main(argparse.Namespace(scorer=scorer, n=8))
    found = pd.read_parquet(f"out/samples/best_of_n-{scorer}-n8.parquet")
    assert list(found) == tasks.best_of_n.COLUMNS
    column = tasks.best_of_n.SCORES[scorer]
    expected = []
    for place, seed in enumerate((7, 3)):
        for name, text in (("b", "so"), ("a", "it")):
            own = draws[(draws["prompt_id"] == name) & (draws["draw"] // 8 == place)]
            best = own.loc[own[column].idxmax()]  # the first of equals
            expected.append((name, text, seed, best["completion"], best["gold_reward"]))
    rows = found[["prompt_id", "prompt", "seed", "completion", "gold_reward"]]
    assert list(rows.itertuples(index=False, name=None)) == expected
    assert set(found["kl"]) == {best_of_n_kl(8)}
    assert set(found["temperature"]) == {1.0}
    assert set(found["domain"]) == {"in"}
    with pytest.raises(UserError, match="too few draws"):
        tasks.best_of_n.main(argparse.Namespace(scorer=scorer, n=16))
