"""Raw rows out of files, one at a time, each with its place for error messages."""

from __future__ import annotations

import gzip
import importlib
import json
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from betaflow.errors import UserError

Row = dict[str, Any]


def read_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Yield (place, line) for each line that is not blank; gzip is told by its first bytes.

    Lines end at `\\n` only, so that other Unicode line separators stay inside a text.
    Raises `UserError` for a missing or damaged file and for bytes that are not UTF-8.
    """
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.strip():
                    yield f"{path}:{number}", text.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8 ({error}); convert the file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path}:{number + 1}: the gzip data is damaged or cut short ({error}); fetch it again"
        ) from None


def _open(path: str | Path) -> Any:
    check_file(path)
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if compressed else open(path, "rb")


def check_file(path: str | Path) -> None:
    """Raise `UserError` saying what to do if `path` is not a file."""
    path = Path(path)
    if path.is_file():
        return
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it (or use data.source: hub)")
    if Path(f"{path}.dvc").is_file():
        raise UserError(f"{path} is not here yet; fetch it with `dvc pull {path}.dvc`")
    raise UserError(
        f"{path} is missing; put it there and run `dvc add {path}`, "
        "or fetch it with `dvc import-url URL data/`"
    )


def read_jsonl_rows(path: str | Path) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) for each line of a JSON-lines file, plain or gzipped."""
    for where, line in read_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(
                f"{where}: each line must be a JSON object, and this one is a {type(row).__name__}"
            )
        yield where, row


def read_parquet_rows(path: str | Path) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) for each row of a Parquet file, batch by batch."""
    check_file(path)
    arrow = optional("pyarrow", "reading Parquet files")
    parquet = optional("pyarrow.parquet", "reading Parquet files")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            wanted = [n for n in ("prompt", "chosen", "rejected") if n in file.schema_arrow.names]
            # With none of the columns there, the rows' own error says which there are.
            batches = file.iter_batches(1024, columns=wanted or None)
            for row in chain.from_iterable(batch.to_pylist() for batch in batches):
                number += 1
                yield f"{path}: row {number}", row
    except UnicodeDecodeError as error:
        rows = f"a row from {number + 1} to {number + 1024}"
        raise UserError(f"{path}: {rows} has a text that is not UTF-8 ({error.reason})") from None
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: can't be read as Parquet ({error})") from None


def optional(module: str, purpose: str) -> ModuleType:
    """Import a package that only some sources need; `UserError` if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"{purpose} needs the package `{package}`: pip install {package} ({error})"
        ) from None
