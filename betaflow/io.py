"""Small files, written whole or not at all.

Everything is written to a temporary sibling under `out/.local/tmp` and renamed, so that a
process killed at any moment leaves either the old output or the new one. JSON has sorted keys
and no timestamps: the same values give the same bytes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from betaflow.errors import UserError

LOCAL = Path("out/.local")


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
    """Yield a temporary path; rename it to `path` if the block succeeds."""
    with _temporary(Path(path)) as temporary:
        yield temporary
        os.replace(temporary, path)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a new temporary directory; it takes the place of `path` if the block succeeds."""
    path = Path(path)
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary
        if path.exists():
            old = temporary.with_suffix(".old")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The workspace's own temporary folder where there is one (DVC must not see half-written
    # siblings inside a directory it hashes); beside the target elsewhere.
    inside = path.resolve().is_relative_to(LOCAL.parent.resolve())
    folder = LOCAL / "tmp" if inside else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{path.name}.{uuid.uuid4().hex}"
    try:
        yield temporary
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"the disk is full; free some space and run again ({path})") from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
