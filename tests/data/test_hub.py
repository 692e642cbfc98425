from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from betaflow.config import DataSettings
from betaflow.data.formats import read_pairs
from betaflow.data.schema import make_pair
from betaflow.errors import UserError

Make = Callable[..., DataSettings]
pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "set" / "data"
    data.mkdir(parents=True)
    for split, answer in (("train", "c"), ("test", "d")):
        rows = [{"prompt": "p", "chosen": answer, "rejected": "r", "score": 1}] * 2
        pd.DataFrame(rows).to_parquet(data / f"{split}-00000-of-00001.parquet")
    return data.parent


def test_a_local_folder_in_the_hubs_layout(folder: Path, settings: Make) -> None:
    assert list(read_pairs(settings("hub", folder))) == [make_pair("p", "c", "r")] * 2
    test = settings("hub", folder, hub_split="test", max_rows=1)
    assert list(read_pairs(test)) == [make_pair("p", "d", "r")]


def test_transcripts_and_conversations_are_detected(tmp_path: Path, settings: Make) -> None:
    folder = tmp_path / "hh"
    folder.mkdir()
    talk = "\n\nHuman: Hi\n\nAssistant:"
    row = {"chosen": f"{talk} Hello", "rejected": f"{talk} No"}
    (folder / "train.jsonl").write_text(json.dumps(row) + "\n")
    assert list(read_pairs(settings("hub", folder))) == [make_pair(talk, " Hello", " No")]

    chat = tmp_path / "chat"
    chat.mkdir()
    user, good, bad = (
        {"role": role, "content": text}
        for role, text in (("user", "Hi"), ("assistant", "Hello"), ("assistant", "No"))
    )
    talk_row = {"prompt": "Hi", "chosen": [user, good], "rejected": [user, bad]}
    (chat / "train.jsonl").write_text(json.dumps(talk_row) + "\n")
    assert list(read_pairs(settings("hub", chat))) == [make_pair([user], [good], [bad])]


def test_errors_name_what_is_wrong(folder: Path, tmp_path: Path, settings: Make) -> None:
    with pytest.raises(UserError, match=r"split 'nope'.*train"):
        list(read_pairs(settings("hub", folder, hub_split="nope")))
    other = tmp_path / "other"
    other.mkdir()
    (other / "train.csv").write_text("question,answer\na,b\n")
    with pytest.raises(UserError, match=r"needs the columns `chosen` and `rejected`.*question"):
        list(read_pairs(settings("hub", other)))
    null = tmp_path / "null"
    null.mkdir()
    (null / "train.jsonl").write_text('{"prompt": "p", "chosen": "c", "rejected": null}\n')
    with pytest.raises(UserError, match=r"\[train\]: row 1: `rejected` is null"):
        list(read_pairs(settings("hub", null)))
    script = tmp_path / "script"
    script.mkdir()
    (script / "script.py").write_text("raise SystemExit('dataset code was run')\n")
    with pytest.raises(UserError, match=r"the local folder .* can't be loaded"):
        list(read_pairs(settings("hub", script)))
