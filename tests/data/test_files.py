from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from betaflow.config import DataSettings
from betaflow.data.files import read_jsonl_rows, read_lines, read_parquet_rows
from betaflow.data.formats import read_documents, read_pairs
from betaflow.data.schema import make_pair
from betaflow.errors import UserError

Make = Callable[..., DataSettings]
GOOD = b'{"prompt": "p", "chosen": "c", "rejected": "r"}\n'


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        (GOOD + b"\n" + b"{not json}\n", 3, "not JSON"),
        (GOOD + b"[1, 2]\n", 2, "each line must be a JSON object, and this one is a list"),
        (GOOD + b'{"prompt": "caf\xe9"}\n', 2, "not UTF-8"),
        (GOOD + b"[" * 100_000 + b"\n", 2, "not JSON"),
        (GOOD + b'{"n": ' + b"9" * 5000 + b"}\n", 2, "not JSON"),
    ],
)
def test_bad_lines_name_file_and_line(tmp_path: Path, data: bytes, line: int, message: str) -> None:
    path = write(tmp_path / "pairs.jsonl", data)
    with pytest.raises(UserError, match=message) as error:
        list(read_jsonl_rows(path))
    assert str(error.value).startswith(f"{path}:{line}: ")


def test_bad_row_names_file_and_line(tmp_path: Path, settings: Make) -> None:
    path = write(tmp_path / "pairs.jsonl", GOOD * 16 + b'{"prompt": "p", "rejected": "r"}\n')
    with pytest.raises(UserError, match=r"pairs\.jsonl:17: `chosen` is missing"):
        list(read_pairs(settings("jsonl", path)))


def test_gzip_is_told_by_its_bytes(tmp_path: Path) -> None:
    plain = list(read_jsonl_rows(write(tmp_path / "a.jsonl", GOOD * 2)))
    for name in ("b.jsonl.gz", "c.jsonl"):
        packed = list(read_jsonl_rows(write(tmp_path / name, gzip.compress(GOOD * 2))))
        assert [row for _, row in packed] == [row for _, row in plain]


@pytest.mark.parametrize("damage", [lambda b: b[:-12], lambda b: b[:40] + b"xx" + b[42:]])
def test_damaged_gzip(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    rows = b"".join(b'{"n": %d}\n' % (n * n) for n in range(1000))
    path = write(tmp_path / "a.jsonl.gz", damage(gzip.compress(rows)))
    with pytest.raises(UserError, match=r"damaged or cut short|not JSON|not UTF-8"):
        list(read_jsonl_rows(path))


def test_unicode_lines_windows_ends_and_bom(tmp_path: Path) -> None:
    text = "\ufeffone\u2028still one\r\n\r\n   \ntwo \U0001f600\x85end"
    path = write(tmp_path / "a.txt", text.encode())
    assert [line for _, line in read_lines(path)] == [
        "one\u2028still one",
        "two \U0001f600\x85end",
    ]


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(UserError, match="dvc add"):
        list(read_jsonl_rows(path))
    with pytest.raises(UserError, match="is a folder"):
        list(read_jsonl_rows(tmp_path))
    write(tmp_path / "a.jsonl.dvc", b"")
    with pytest.raises(UserError, match="dvc pull"):
        list(read_jsonl_rows(path))


MESSAGES = (
    [{"role": "user", "content": "Hi"}],
    [{"role": "assistant", "content": "Hello"}],
    [{"role": "assistant", "content": "\U0001f600"}],
)


def test_parquet_gives_what_jsonl_gives(tmp_path: Path, settings: Make) -> None:
    rows = [{"prompt": f"p{n}", "chosen": "c", "rejected": "é"} for n in range(3)]
    path = tmp_path / "pairs.parquet"
    pd.DataFrame(rows).assign(extra=[object.__name__] * 3).to_parquet(path)
    assert list(read_pairs(settings("parquet", path))) == [make_pair(*r.values()) for r in rows]
    chat = tmp_path / "chat.parquet"
    pd.DataFrame([dict(zip(("prompt", "chosen", "rejected"), MESSAGES, strict=True))]).to_parquet(
        chat
    )
    assert list(read_pairs(settings("parquet", chat))) == [make_pair(*MESSAGES)]


def test_a_parquet_text_that_is_not_utf8_is_one_message(tmp_path: Path, settings: Make) -> None:
    path = tmp_path / "pairs.parquet"
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\4\0\0\0"), pa.py_buffer(b"caf\xe9")]
    )
    columns = {name: bad for name in ("prompt", "chosen", "rejected")}
    pq.write_table(pa.table(columns), path)
    with pytest.raises(UserError, match=r"a row from 1 to 1024 has a text that is not UTF-8"):
        list(read_pairs(settings("parquet", path)))


def test_bad_parquet(tmp_path: Path, settings: Make) -> None:
    path = tmp_path / "pairs.parquet"
    with pytest.raises(UserError, match=r"pairs\.parquet: can't be read as Parquet"):
        list(read_parquet_rows(write(path, GOOD)))
    pd.DataFrame({"question": ["q"]}).to_parquet(path)
    with pytest.raises(UserError, match=r"row 1: `chosen` is missing \(the row's keys: question"):
        list(read_pairs(settings("parquet", path)))
    rows = {"prompt": ["p", "p"], "chosen": ["c", None], "rejected": ["r", "r"]}
    pd.DataFrame(rows).to_parquet(path)
    with pytest.raises(UserError, match="row 2: `chosen` is null"):
        list(read_pairs(settings("parquet", path)))


def test_missing_packages_are_named(
    tmp_path: Path, settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "pairs.parquet", b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        list(read_pairs(settings("parquet", path)))
    with pytest.raises(UserError, match="pip install datasets"):
        list(read_pairs(settings("hub", "someone/something")))


def test_documents(tmp_path: Path) -> None:
    text = write(tmp_path / "a.txt.gz", gzip.compress(b"one\n\ntwo\nthree\n"))
    assert list(read_documents(text, 2)) == [{"text": "one"}, {"text": "two"}]
    rows = write(tmp_path / "a.jsonl", b'{"text": "a\\nb", "label": 1}\n{"messages": []}\n')
    documents = read_documents(rows)
    assert next(documents) == {"text": "a\nb"}
    with pytest.raises(UserError, match=r"a\.jsonl:2: `messages` is an empty list"):
        next(documents)
    with pytest.raises(UserError, match=r"a\.csv must be \.txt"):
        read_documents(write(tmp_path / "a.csv", b""))
