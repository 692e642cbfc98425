"""Small files, written whole or not at all.

Everything is written to a temporary sibling (under `out/.local/tmp` for what lies in `out/`),
flushed to the disk and renamed, so that a process killed at any moment, or a power cut, leaves
either the old output or the new one. JSON has sorted keys and no timestamps: the same values
give the same bytes.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from betaflow.errors import UserError

LOCAL = Path("out/.local")
CHECKPOINTS = LOCAL / "checkpoints"


def read_json(path: str | Path) -> Any:
    """Parse a JSON file. A missing or damaged file is a `UserError`."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; run `make align` (or `dvc repro`) to make it"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}); delete it and run again") from None


def parse_yaml(text: str | bytes) -> Any:
    """What YAML says, by the parser in C where there is one: many times as fast."""
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON with sorted keys, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(_dumps(value, indent=2) + "\n", encoding="utf-8")


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file that this package wrote."""
    try:
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.strip()]
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; run `make align` (or `dvc repro`) to make it"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run again") from None


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSON-lines file, atomically."""
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(_dumps(row) + "\n")


def _dumps(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, indent=indent)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; rename it to `path`, flushed to the disk, if the block succeeds."""
    path = Path(path)
    with _temporary(path) as temporary:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a new temporary directory; it takes the place of `path` if the block succeeds.

    Its files are flushed to the disk before the rename, so that a power cut, too, leaves either
    the old directory or the new one. What a killed writer of the same path left behind is removed
    first: one process at a time writes a directory.
    """
    path = Path(path)
    with _temporary(path) as temporary:
        folder, name = _place(path)
        for left in folder.glob(f".{glob.escape(name)}.{'[0-9a-f]' * 32}*"):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for inside in (*temporary.rglob("*"), temporary):
            _flush(inside)
        if path.exists():
            old = temporary.with_name(f"{temporary.name}.old")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old, ignore_errors=True)  # what stays goes at the next write
        else:
            os.replace(temporary, path)
        _flush(path.parent)


class NoRoom(UserError):
    """What was to be written has no room: `reason` says why, `remedy` what to do."""

    def __init__(self, reason: str, remedy: str, path: Path) -> None:
        super().__init__(f"{reason}; {remedy} and run again ({path})")
        self.reason, self.remedy = reason, remedy


_NO_ROOM = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or have the quota raised,"),
    errno.EFBIG: ("a file would be larger than is allowed here", "raise the limit (`ulimit -f`)"),
}


def _no_room(error: Exception, path: Path) -> NoRoom | None:
    """`error` as a `NoRoom`, where it is one; libraries in Rust say so in the text alone."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    return NoRoom(*_NO_ROOM[number], path) if number in _NO_ROOM else None


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    folder, name = _place(path)
    temporary = folder / f".{name}.{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        yield temporary
    except Exception as error:
        no_room = _no_room(error, path)
        if no_room:
            raise no_room from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _place(path: Path) -> tuple[Path, str]:
    """The folder of a target's temporaries, and what their names have in common."""
    out, full = LOCAL.parent.resolve(), path.resolve()
    if full.is_relative_to(out) and not full.is_relative_to(LOCAL.resolve()):
        # DVC must not see half-written siblings inside a directory that it hashes.
        return LOCAL / "tmp", "+".join(full.relative_to(out).parts)
    return path.parent, path.name


def _flush(path: Path) -> None:
    """Have a file's content, or a directory's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems can't flush a directory; they keep its names themselves.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(handle)
