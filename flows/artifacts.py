"""Show in Prefect what a flow decided."""

from __future__ import annotations

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact


def publish(markdown: str, key: str) -> None:
    """Keep a Markdown artifact; if Prefect can't, say so and go on: what was done is done."""
    try:
        create_markdown_artifact(markdown, key=key)
    except Exception as error:
        name = type(error).__name__
        get_run_logger().warning("Prefect could not keep the artifact %s (%s)", key, name)
