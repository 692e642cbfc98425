from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from betaflow.config import DataSettings, load_params
from betaflow.data.prepare import NAMES, prepare, summary, write
from betaflow.data.schema import content_id
from betaflow.errors import UserError
from betaflow.io import read_json, read_jsonl

Make = Callable[..., DataSettings]
Write = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]

ROWS = [
    {"prompt": f"Prompt {n // 2} \U0001f600", "chosen": f" good {n}", "rejected": " bad\u2028é"}
    for n in range(60)
] + [{"prompt": "Prompt 0 \U0001f600", "chosen": " bad\u2028é", "rejected": " good 0"}]


def files(settings: DataSettings, folder: Path) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    write(prepare(settings), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_file_is_there_and_prompts_never_cross(
    jsonl: Write, settings: Make, tmp_path: Path
) -> None:
    found = files(settings("jsonl", jsonl(ROWS)), tmp_path / "out")
    assert set(found) == {f"{name}.jsonl" for name in NAMES} | {"statistics.json"}
    rows = {name: read_jsonl(tmp_path / "out" / f"{name}.jsonl") for name in NAMES}
    assert rows["cloze"] == rows["prompts_unlabelled"] == rows["prompts_ood"] == []
    everything: list[Any] = []
    for split in ("train", "eval"):
        pairs, prompts = rows[f"pairs_{split}"], rows[f"prompts_{split}"]
        assert pairs and set(pairs[0]) == {"id", "prompt", "chosen", "rejected"}
        assert {p["prompt"] for p in pairs} == {p["prompt"] for p in prompts}
        assert all(p["id"] == content_id(p["prompt"]) for p in prompts)
        assert {t["text"] for t in rows[f"sft_{split}"]} == {
            p["prompt"] + p["chosen"] for p in pairs
        }
        everything += pairs
    train, held_out = ({p["prompt"] for p in rows[f"pairs_{s}"]} for s in ("train", "eval"))
    assert not train & held_out
    assert sorted(p["chosen"] for p in everything) == sorted(r["chosen"] for r in ROWS)


def test_same_rows_same_bytes_in_any_order(jsonl: Write, settings: Make, tmp_path: Path) -> None:
    first = files(settings("jsonl", jsonl(ROWS)), tmp_path / "a")
    assert files(settings("jsonl", jsonl(ROWS)), tmp_path / "b") == first
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    assert files(settings("jsonl", jsonl(shuffled)), tmp_path / "c") == first


def test_statistics_add_up(jsonl: Write, settings: Make) -> None:
    path = jsonl([*ROWS, ROWS[0], {**ROWS[1], "chosen": " "}])
    statistics = prepare(settings("jsonl", path)).statistics
    kept = statistics["kept"]
    assert statistics["rows_read"] == len(ROWS) + 2
    assert statistics["dropped"] == {"duplicate": 1, "empty completion": 1}
    assert kept["pairs_train"] + kept["pairs_eval"] == len(ROWS)
    assert statistics["sft"] == {"rows_read": len(ROWS), "dropped": {}}
    assert statistics["pairs"]["contradictory"] == 2
    text = summary(statistics)
    assert "dropped 1: duplicate" in text and "63 rows read" in text


def test_repeated_chosen_text_is_learned_once(jsonl: Write, settings: Make) -> None:
    rows = [{"prompt": f"p{n // 3}", "chosen": "c", "rejected": f"r{n}"} for n in range(90)]
    statistics = prepare(settings("jsonl", jsonl(rows))).statistics
    assert statistics["sft"] == {"rows_read": 90, "dropped": {"repeated text": 60}}


def test_max_rows_reads_from_the_top(jsonl: Write, settings: Make) -> None:
    broken = [*ROWS[:40], "not a row"]
    prepared = prepare(settings("jsonl", jsonl(broken), max_rows=40))
    assert prepared.statistics["rows_read"] == 40


def test_messages_become_sft_messages(jsonl: Write, settings: Make) -> None:
    def row(n: int) -> dict[str, Any]:
        talk = [{"role": "user", "content": f"q{n}"}]
        answers = ({"role": "assistant", "content": text} for text in ("yes", "no"))
        return dict(zip(("chosen", "rejected"), ([*talk, a] for a in answers), strict=True))

    rows = prepare(settings("jsonl", jsonl(map(row, range(40))))).rows
    text = rows["sft_train"][0]["messages"]
    assert [message["role"] for message in text] == ["user", "assistant"]
    assert text[1]["content"] == "yes"
    assert rows["prompts_eval"][0]["prompt"][0]["role"] == "user"


def test_text_file_for_sft(jsonl: Write, settings: Make, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"document {n % 50}\n" for n in range(60)))
    prepared = prepare(settings("jsonl", jsonl(ROWS), text=str(text)))
    train, held_out = (prepared.rows[f"sft_{split}"] for split in ("train", "eval"))
    assert len(train) + len(held_out) == 50 and train and held_out
    assert prepared.statistics["sft"] == {"rows_read": 60, "dropped": {"repeated text": 10}}
    text.write_text("one\n")
    with pytest.raises(UserError, match="none of the 1 documents falls in"):
        prepare(settings("jsonl", jsonl(ROWS), text=str(text)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no pair is left"),
        (ROWS[:1], "none of the 1 pairs falls in the (eval|train) split"),
        ([{**ROWS[0], "chosen": ""}], "no pair is left"),
    ],
)
def test_too_little_data(
    jsonl: Write, settings: Make, rows: list[dict[str, str]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(settings("jsonl", jsonl(rows)))


def test_the_embedded_world(settings: Make, tmp_path: Path) -> None:
    sizes = {"reviews": 50, "prompts": 60, "unlabelled": 20, "out_of_domain": 5}
    world = settings("world", None, world=sizes)
    first = files(world, tmp_path / "a")
    assert first == files(world, tmp_path / "b")
    assert first["pairs_train.jsonl"] == b""
    kept = read_json(tmp_path / "a" / "statistics.json")["kept"]
    assert kept["prompts_ood"] == 5 and kept["sft_train"] > 0


@pytest.mark.parametrize(("fraction", "split"), [(0.01, "eval"), (0.99, "train")])
def test_a_world_too_small_to_split_is_refused(settings: Make, fraction: float, split: str) -> None:
    sizes = {"reviews": 50, "prompts": 4, "unlabelled": 0, "out_of_domain": 0}
    with pytest.raises(
        UserError, match=rf"falls in the {split} split.* data.world.prompts .* data.eval_fraction"
    ):
        prepare(settings("world", None, world=sizes, eval_fraction=fraction))


def test_the_stage(
    hh_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from tasks.prepare import main

    values = yaml.safe_load((ROOT / "presets" / "hh-sample.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(hh_file, tmp_path / values["data"]["path"])
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    assert load_params().data.source == "hh"
    main()
    first = (tmp_path / "out/data/pairs_train.jsonl").read_bytes()
    main()
    assert (tmp_path / "out/data/pairs_train.jsonl").read_bytes() == first
    assert "1600 rows read" in capsys.readouterr().out
    assert len(first.splitlines()) == read_json("out/data/statistics.json")["kept"]["pairs_train"]
    assert not list((tmp_path / "out/.local/tmp").iterdir())
    assert json.loads(first.splitlines()[0])["prompt"].endswith("\n\nAssistant:")
