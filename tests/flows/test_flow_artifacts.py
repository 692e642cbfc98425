"""An artifact that Prefect can't keep: what was done stays done."""

from __future__ import annotations

import logging

import pytest

from flows import artifacts


def test_a_server_that_went_away_does_not_undo_what_was_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: str, **__: str) -> None:
        raise ConnectionError("http://name:hunter2@127.0.0.1:9")

    monkeypatch.setattr(artifacts, "create_markdown_artifact", away)
    monkeypatch.setattr(artifacts, "get_run_logger", lambda: logging.getLogger("flow"))
    artifacts.publish("**Promoted.**", key="promotion")
    (record,) = caplog.records
    assert record.getMessage() == "Prefect could not keep the artifact promotion (ConnectionError)"
