"""Show in Prefect what a flow decided or compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact


def publish(markdown: str, key: str) -> None:
    """Keep a Markdown artifact; if Prefect can't, say so and go on: what was done is done."""
    with _or_say_so(key):
        create_markdown_artifact(markdown, key=key)


def publish_table(rows: list[dict[str, Any]], key: str, description: str) -> None:
    """Keep a table, as `publish`."""
    with _or_say_so(key):
        create_table_artifact(rows, key=key, description=description)


@contextmanager
def _or_say_so(key: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        name = type(error).__name__
        get_run_logger().warning("Prefect could not keep the artifact %s (%s)", key, name)
