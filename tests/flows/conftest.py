"""A workspace for each test, and one Prefect server for all of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_workspace import Workspace, until


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A fresh workspace to stand in; a stage that a failed test left behind is killed."""
    made = Workspace(tmp_path / "workspace")
    monkeypatch.chdir(made.path)
    yield made
    for process in made.processes():
        process.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real `prefect server`; gives the environment in which its clients work."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    api = f"http://127.0.0.1:{port}/api"
    settings = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    }
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *f"-m prefect server start --host 127.0.0.1 --port {port}".split()],
            env=os.environ | settings,
            cwd=home,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )

    def answers() -> bool:
        assert process.poll() is None, (home / "server.log").read_text()
        try:
            return bool(urllib.request.urlopen(f"{api}/health", timeout=5).status == 200)
        except OSError:
            return False

    try:
        until(answers)
        yield settings
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
