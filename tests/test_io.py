"""Files are written whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from betaflow.errors import UserError
from betaflow.io import (
    atomic_directory,
    atomic_file,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)


def test_a_failed_write_leaves_the_old_output_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with atomic_directory("out/thing") as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory("out/thing") as folder:
        (folder / "a").write_text("new")
        raise RuntimeError
    assert (tmp_path / "out/thing/a").read_text() == "old"
    assert not list((tmp_path / "out/.local/tmp").iterdir())
    with atomic_directory("out/thing") as folder:
        (folder / "b").write_text("new")
    assert [p.name for p in (tmp_path / "out/thing").iterdir()] == ["b"]


def test_a_writer_killed_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "out/x.json", {"a": 1})
    code = (
        "import os, signal\n"
        "from betaflow.io import atomic_file\n"
        "with atomic_file('out/x.json') as path:\n"
        "    path.write_text('{\"a\":')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_json(tmp_path / "out/x.json") == {"a": 1}
    assert [p.name for p in (tmp_path / "out").iterdir() if p.name != ".local"] == ["x.json"]


def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="disk is full"), atomic_file(tmp_path / "x"):
        raise OSError(28, os.strerror(28))


def test_the_same_rows_give_the_same_bytes_and_come_back(tmp_path: Path) -> None:
    rows = [{"b": 1, "a": "é\u2028x"}, {"a": None}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_jsonl(tmp_path / "b.jsonl", [dict(reversed(row.items())) for row in rows])
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert read_jsonl(tmp_path / "a.jsonl") == rows


def test_missing_and_damaged_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make align"):
        read_json(tmp_path / "none.json")
    (tmp_path / "half.jsonl").write_text('{"a": 1}\n{"a":')
    with pytest.raises(UserError, match="damaged"):
        read_jsonl(tmp_path / "half.jsonl")
