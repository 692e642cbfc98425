"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from betaflow.errors import UserError
from betaflow.io import (
    NoRoom,
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


def test_what_a_killed_writer_left_goes_at_the_next_write_of_the_same(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from betaflow.io import atomic_directory\n"
        "with atomic_directory(sys.argv[1]) as path:\n"
        "    (path / 'a').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    targets = ("out/dpo/arm", "out/ppo/arm", "out/dpo/arm-2", "out/.local/checkpoints/arm/01")
    for target in targets:
        subprocess.run([sys.executable, "-c", code, target], cwd=tmp_path, check=False)

    def left() -> int:
        return len([p for p in tmp_path.rglob(".*") if p.name != ".local"])

    assert not (tmp_path / "out/dpo/arm").exists()
    assert left() == 4
    code = code.replace("os.kill", "pass #").replace("half", "whole")
    for done, target in enumerate(targets):
        subprocess.run([sys.executable, "-c", code, target], cwd=tmp_path, check=True)
        assert (tmp_path / target / "a").read_text() == "whole"
        # Other stages may be writing the others.
        assert left() == 3 - done


def test_a_writer_killed_while_it_removes_the_old_directory_stops_no_later_one(
    tmp_path: Path,
) -> None:
    kill = "shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
    code = (
        "import os, shutil, signal, sys\n"
        "from betaflow.io import atomic_directory\n"
        "with atomic_directory('out/arm') as path:\n"
        "    (path / 'a').write_text(sys.argv[1])\n"
    )
    for text, extra in (("one", ""), ("two", "    " + kill), ("three", ""), ("four", "")):
        subprocess.run([sys.executable, "-c", code + extra, text], cwd=tmp_path, check=not extra)
        assert (tmp_path / "out/arm/a").read_text() == text
    assert [p.name for p in tmp_path.rglob(".*")] == [".local"]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_renamed_is_on_the_disk_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A power cut can't be caused here: this looks at the order of the calls."""
    calls: list[str] = []

    def fsync(handle: int) -> None:
        calls.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)

    def replace(source: Path, target: Path, real=os.replace) -> None:  # type: ignore[no-untyped-def]
        calls.append("rename")
        real(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    if kind == "file":
        with atomic_file(tmp_path / "x") as path:
            path.write_text("a")
        assert calls == [path.name, "rename", tmp_path.name]
    else:
        with atomic_directory(tmp_path / "x") as path:
            (path / "b").mkdir()
            (path / "b" / "a").write_text("a")
        assert sorted(calls[:3]) == sorted([path.name, "b", "a"])
        assert calls[3:] == ["rename", tmp_path.name]


def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="disk is full"), atomic_file(tmp_path / "x"):
        raise OSError(28, os.strerror(28))
    with (
        pytest.raises(UserError, match="disk is full"),
        atomic_directory(tmp_path / "y"),
        open("/dev/full", "w") as full,
    ):
        full.write("x")
    with pytest.raises(UserError, match="disk quota is used up"), atomic_file(tmp_path / "x"):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert list(tmp_path.iterdir()) == []


def test_a_file_over_the_limit_is_a_clear_error_whoever_writes(tmp_path: Path) -> None:
    """safetensors says what happened in its message alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(NoRoom, match=r"larger than is allowed here; raise the limit"):
            write_json(tmp_path / "x", "x" * 6000)
        with (
            pytest.raises(NoRoom, match=r"larger than is allowed here; raise the limit"),
            atomic_directory(tmp_path / "y") as folder,
        ):
            save_file({"a": torch.zeros(3000)}, folder / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output"), atomic_file(tmp_path / "x"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


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
