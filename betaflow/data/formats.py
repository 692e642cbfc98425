"""From the `data` settings to pairs and SFT documents, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from betaflow.config import DataSettings
from betaflow.data.files import Row, read_jsonl_rows, read_lines, read_parquet_rows
from betaflow.data.hub import read_hub_rows
from betaflow.data.schema import Dropped, Pair, fail, parse_content, parse_pair
from betaflow.data.transcripts import parse_transcripts
from betaflow.errors import UserError

Parser = Callable[[Mapping[str, Any], str], Pair | Dropped]


def read_pairs(settings: DataSettings) -> Iterator[Pair | Dropped]:
    """Yield a pair, or the reason why it is dropped, for each row of the source.

    At most `max_rows` rows are read, in the source's own order.
    """
    if settings.path is None:
        raise UserError(f"data.path: source {settings.source!r} needs a file or a dataset's name")
    path = settings.path
    rows: Iterator[tuple[str, Row]]
    parse: Parser = parse_pair
    match settings.source:
        case "hh":
            rows, parse = read_jsonl_rows(path), parse_transcripts
        case "jsonl":
            rows = read_jsonl_rows(path)
        case "parquet":
            rows = read_parquet_rows(path)
        case "hub":
            rows, parse = (
                read_hub_rows(path, settings.hub_split, settings.hub_revision),
                parse_detected,
            )
        case _:
            raise UserError(f"data.source: {settings.source!r} is not a source of pairs")
    for where, row in islice(rows, settings.max_rows):
        yield parse(row, where)


def parse_detected(values: Mapping[str, Any], where: str) -> Pair | Dropped:
    """Parse a hub row: without a `prompt`, text is HH transcripts."""
    if values.get("prompt") is None and isinstance(values.get("chosen"), str):
        return parse_transcripts(values, where)
    return parse_pair(values, where)


def read_documents(path: str | Path, max_rows: int | None = None) -> Iterator[Row]:
    """Yield SFT documents, `{"text"}` or `{"messages"}`.

    `.txt` holds a document a line; `.jsonl` a row with `text` or `messages`. Either may be
    gzipped (`.txt.gz`). Blank lines are skipped.
    """
    name = Path(path).name.removesuffix(".gz")
    if name.endswith(".txt"):
        documents = ({"text": line} for _, line in read_lines(path))
    elif name.endswith(".jsonl"):
        documents = (_document(row, where) for where, row in read_jsonl_rows(path))
    else:
        raise UserError(f"data.text: {path} must be .txt (a document a line) or .jsonl (a row)")
    return islice(documents, max_rows)


def _document(row: Row, where: str) -> Row:
    if "messages" in row:
        messages = parse_content(row, "messages", where)
        if isinstance(messages, str):
            fail(where, "`messages` must be a list of messages; plain text goes in `text`")
        return {"messages": messages}
    text = parse_content(row, "text", where)
    if not isinstance(text, str):
        fail(where, "`text` must be text; a list of messages goes in `messages`")
    return {"text": text}
