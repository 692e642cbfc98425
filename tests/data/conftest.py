"""Helpers for the tests of real data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from betaflow.config import DataSettings


@pytest.fixture
def hh_file(shared: Path) -> Path:
    return shared / "data" / "hh-harmless.jsonl.gz"


@pytest.fixture
def settings() -> Callable[..., DataSettings]:
    def make(source: str, path: str | Path | None, **other: Any) -> DataSettings:
        values = {
            "hub_split": None,
            "text": None,
            "eval_fraction": 0.2,
            "max_rows": None,
            "seed": 0,
            "world": None,
        }
        path = None if path is None else str(path)
        return DataSettings.model_validate({**values, "source": source, "path": path, **other})

    return make


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    def make(rows: Iterable[Any], name: str = "pairs.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return make
