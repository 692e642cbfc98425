"""Human pairs: what is dropped, what is cut, and that every stage reads the same tokens."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

import tasks._pairs
import tasks.dpo
import tasks.reference
import tasks.reward
import tasks.unlikelihood
from betaflow.config import DataSettings, PairsSettings, Params
from betaflow.data.formats import read_pairs
from betaflow.data.pairs import human_pairs
from betaflow.data.schema import Pair
from betaflow.data.tokenise import Encoded, Limits, encode
from betaflow.errors import UserError
from betaflow.io import write_jsonl
from betaflow.policy.loading import load_tokenizer
from betaflow.policy.scratch import train_tokenizer
from tasks import tracking
from tasks._inputs import encode_pairs

SIDES = ("chosen", "rejected")
MODES = ("drop", "keep_start", "keep_end")
LONG = "the plot was good and the acting was dull and the plot"


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny)


@pytest.fixture
def limited(params: Params) -> Callable[..., PairsSettings]:
    def make(truncation: str, prompt: int, completion: int) -> PairsSettings:
        changed = {
            "source": "human",
            "truncation": truncation,
            "max_prompt_tokens": prompt,
            "max_completion_tokens": completion,
        }
        return PairsSettings.model_validate({**params.pairs.model_dump(), **changed})

    return make


@pytest.fixture
def real(hh_file: Path, settings: Callable[..., DataSettings]) -> list[dict[str, Any]]:
    found = read_pairs(settings("hh", hh_file, max_rows=150))
    return [row._asdict() for row in found if isinstance(row, Pair)]


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"id": f"{prompt}{chosen}", "prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_without_a_cut_what_is_too_long_is_dropped_by_reason(
    tokenizer: PreTrainedTokenizerBase, limited: Callable[..., PairsSettings]
) -> None:
    fits = pair("the plot", " was good.", " was dull.")
    given = [
        fits,
        pair(LONG, " was good.", " was dull."),
        pair("the acting", f" was{LONG}", " was dull."),
        pair("the end", " was good.", f" was good.{tokenizer.eos_token}"),
    ]
    rows, counts = human_pairs(given, tokenizer, limited("drop", 8, 8))
    assert [row["id"] for row in rows] == [fits["id"]]
    assert counts == {
        "dropped_long_prompt": 1,
        "dropped_long_completion": 1,
        "dropped_equal_tokens": 1,
        "pairs": 1,
    }


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_with_a_cut_rows_keep_their_text_and_their_id(
    tokenizer: PreTrainedTokenizerBase, limited: Callable[..., PairsSettings], mode: str
) -> None:
    given = [
        pair("the plot", " was good.", " was dull."),
        pair(LONG, " was good.", " was dull."),
        pair("the acting", f" was {LONG}", " is dull."),
        pair(f"{LONG}!", f" was {LONG}", " is dull."),
    ]
    rows, counts = human_pairs(given, tokenizer, limited(mode, 8, 8))
    assert counts == {"cut_prompt": 2, "cut_completion": 2, "pairs": 4}
    for before, row in zip(given, rows, strict=True):
        assert {key: row[key] for key in before} == before
        assert row["chosen_finished"] and row["rejected_finished"]


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_a_pair_that_the_cut_makes_equal_is_dropped_and_counted(
    tokenizer: PreTrainedTokenizerBase, limited: Callable[..., PairsSettings], mode: str
) -> None:
    given = [
        pair("the plot", f" {LONG} was good", f" {LONG} was dull"),
        pair("the end", " was", f" was{tokenizer.eos_token}"),  # equal to begin with
        pair("the acting", " was good.", " is dull."),
        # With its EOS the one is as long as the limit: they differ in that.
        pair("the film", " was", " was good"),
    ]
    rows, counts = human_pairs(given, tokenizer, limited(mode, 9, 2))
    assert counts == {"cut_completion": 2, "dropped_equal_tokens": 2, "pairs": 2}
    assert [row["prompt"] for row in rows] == ["the acting", "the film"]
    chosen, rejected = encode_pairs(tokenizer, rows, Limits(mode, 9, 2))  # type: ignore[arg-type]
    eos = tokenizer.eos_token_id
    assert [side[-1].completion.count(eos) for side in (chosen, rejected)] == [1, 0]
    with pytest.raises(UserError, match=r"every one of 1 pairs was dropped .*dropped_equal_tokens"):
        human_pairs(given[:1], tokenizer, limited(mode, 9, 2))


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_a_prompt_of_which_nothing_is_left_is_dropped_and_counted(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    limited: Callable[..., PairsSettings],
    mode: str,
) -> None:
    """BOS alone, or, where none is added, the shorter prompt of a merge at the border."""
    fits = pair("", " was good.", " was dull.")
    given = [fits, pair("the plot", " was good.", " was dull.")]
    rows, counts = human_pairs(given, tokenizer, limited(mode, 1, 9))
    assert [row["id"] for row in rows] == [fits["id"]]
    assert counts == {"dropped_emptied": 1, "pairs": 1}

    plain = train_tokenizer(texts, 400)
    plain.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    given = [
        pair("the ", "plot was dull.", " was good."),
        pair("the plot", " was dull.", " was good."),
    ]
    whole = [encode(plain, "the ", given[0][name]) for name in SIDES]
    assert [len(side.prompt) for side in whole] == [1, 2]
    rows, counts = human_pairs(given, plain, limited(mode, 1, 9))
    assert [row["id"] for row in rows] == [given[1]["id"]]
    assert counts == {"cut_prompt": 1, "dropped_emptied": 1, "pairs": 1}


@pytest.mark.parametrize("mode", MODES)
def test_the_pairs_stage_and_those_after_it_agree_on_real_text(
    tokenizer: PreTrainedTokenizerBase,
    limited: Callable[..., PairsSettings],
    real: list[dict[str, Any]],
    mode: str,
) -> None:
    settings = limited(mode, 300, 60)
    rows, counts = human_pairs(real, tokenizer, settings)
    dropped = sum(count for name, count in counts.items() if name.startswith("dropped_"))
    assert counts["pairs"] == len(rows) == len(real) - dropped
    whole = encode_pairs(tokenizer, rows, Limits("drop", 300, 60))
    found = encode_pairs(tokenizer, rows, Limits.of(settings))
    cut = {"cut_prompt": 0, "cut_completion": 0}
    for before, after in zip(zip(*whole, strict=True), zip(*found, strict=True), strict=True):
        for part in ("prompt", "completion"):
            cut[f"cut_{part}"] += any(
                getattr(a, part) != getattr(b, part) for a, b in zip(before, after, strict=True)
            )
        assert all(0 < len(side.prompt) <= 300 and 0 < len(side.completion) <= 60 for side in after)
        assert after[0].completion != after[1].completion
    assert {name: counts.get(name, 0) for name in cut} == cut
    if mode == "drop":
        assert found == whole and dropped > 0
    else:
        assert min(cut.values()) > 0
        # Only what the cut made useless went.
        assert set(counts) <= {*cut, "pairs", "dropped_emptied", "dropped_equal_tokens"}


class Trained(Exception):
    """Instead of training: the sequences and the fingerprint that a stage begins with."""


@pytest.fixture
def workspace(
    tiny: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """What the stages after `pairs` read, but for the pairs; training ends before it begins."""
    monkeypatch.chdir(tmp_path)
    for name in ("betaflow", "tasks", "dvc.yaml"):
        Path(name).symlink_to(repository / name)
    shutil.copytree(tiny, "out/sft")
    Path("out/pairs").mkdir()
    for name in ("eval", "train", "unlabelled"):  # of the curve and online DPO, which are off
        write_jsonl(f"out/data/prompts_{name}.jsonl", [])

    def dpo(_: Any, pairs: Any, held_out: Any, *__: Any, fingerprint: str, **___: Any) -> None:
        sides = [pairs.chosen, pairs.rejected, held_out.chosen, held_out.rejected]
        raise Trained(sides, fingerprint)

    def reward(_: Any, pairs: Any, held_out: Any, *__: Any, fingerprint: str, **___: Any) -> None:
        raise Trained([*pairs, *held_out], fingerprint)

    monkeypatch.setattr(tasks._pairs, "train_dpo", dpo)
    monkeypatch.setattr(tasks.reward, "train_reward", reward)
    monkeypatch.setattr(tracking, "training_run", lambda *_: nullcontext(tracking.StepLog()))
    return tmp_path


def begun(stage: Callable[[], None]) -> tuple[list[list[Encoded]], str]:
    with pytest.raises(Trained) as found:
        stage()
    return found.value.args


def dpo_arm() -> None:
    tasks.dpo.main(argparse.Namespace(method="dpo", beta=0.1, learning_rate=0.001, seed=0))


def unlikelihood_arm() -> None:
    tasks.unlikelihood.main(argparse.Namespace(alpha=0.5, learning_rate=0.001, seed=0))


STAGES = (dpo_arm, unlikelihood_arm, tasks.reward.main)


def configure(repository: Path, **pairs: Any) -> PairsSettings:
    values = yaml.safe_load((repository / "presets/hh-sample.yaml").read_text())
    values["pairs"] |= pairs
    for section in (values["reference"], values["dpo"]["training"], values["reward"]):
        section["threads"] = 1
    Path("params.yaml").write_text(yaml.safe_dump(values))
    return PairsSettings.model_validate(values["pairs"])


@pytest.mark.parametrize("mode", MODES)
def test_reference_dpo_and_reward_read_the_same_tokens_and_know_the_limits(
    tokenizer: PreTrainedTokenizerBase,
    real: list[dict[str, Any]],
    workspace: Path,
    repository: Path,
    mode: str,
) -> None:
    # Uncut, many of these are longer than the model's 128 positions.
    limits = {"truncation": mode, "max_prompt_tokens": 80, "max_completion_tokens": 40}
    settings = configure(repository, **limits)
    rows, _ = human_pairs(real, tokenizer, settings)
    expected, lengths = [], []
    for split, part in (("train", rows[:20]), ("eval", rows[20:30])):
        write_jsonl(Path(f"out/pairs/{split}.jsonl"), part)
        expected += encode_pairs(tokenizer, part, Limits.of(settings))
    tasks.reference.main()
    for split in ("train", "eval"):
        table = pd.read_parquet(f"out/reference/{split}.parquet")
        lengths += [table[f"{name}_tokens"].tolist() for name in SIDES]
    assert lengths == [[len(sequence.completion) for sequence in side] for side in expected]
    first = {stage: begun(stage) for stage in STAGES}
    assert all(sides == expected for sides, _ in first.values())

    other = "keep_start" if mode == "keep_end" else "keep_end"
    for change in ({"truncation": other}, {"max_prompt_tokens": 81}, {"max_completion_tokens": 41}):
        configure(repository, **{**limits, **change})
        tasks.reference.main()  # the arm would not begin on another's tokens
        for stage, (_, fingerprint) in first.items():
            assert begun(stage)[1] != fingerprint, change


def test_an_arm_does_not_begin_on_the_reference_of_other_tokens(
    tokenizer: PreTrainedTokenizerBase,
    real: list[dict[str, Any]],
    workspace: Path,
    repository: Path,
) -> None:
    limits = {"truncation": "keep_end", "max_prompt_tokens": 80}
    settings = configure(repository, **limits, max_completion_tokens=40)
    rows, _ = human_pairs(real, tokenizer, settings)
    for split in ("train", "eval"):
        write_jsonl(Path(f"out/pairs/{split}.jsonl"), rows[:20])
    tasks.reference.main()
    configure(repository, **limits, max_completion_tokens=20)
    with pytest.raises(UserError, match="the reference was computed on other tokens"):
        dpo_arm()


def test_the_stages_that_encode_pairs_declare_their_limits(repository: Path) -> None:
    stages = yaml.safe_load((repository / "dvc.yaml").read_text())["stages"]
    for stage in ("reference", "dpo", "reward"):
        assert {f"pairs.{name}" for name in Limits._fields} <= set(stages[stage]["params"])
