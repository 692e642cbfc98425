"""MLflow's own page in a real browser: runs sorted by win rate, charts of the arms, the alias."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from betaflow.config import Params
from tasks import tracking

RATES = {"dpo-b0.1": 0.71, "dpo-b0.3": 0.83, "dpo-b1.0": 0.64, "ppo-b0.1": 0.77}
CHAMPION = "dpo-b0.3"
SECONDS = 120  # for what a busy machine may take long to show


@pytest.fixture(scope="module")
def address(
    chromium: Browser, params: Params, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A real server of MLflow over a sweep as `compare` and `promote` leave it."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        (folder / "out/data").mkdir(parents=True)
        log_sweep(params)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    quiet = {**os.environ, "DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=quiet, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}", server, folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def log_sweep(params: Params) -> None:
    tracker = tracking.Tracker(params)
    for number, (arm, rate) in enumerate(RATES.items()):
        about = {"arm": arm, "method": arm[:3], "fingerprint": str(number) * 64, "settings": {}}
        run = tracker.arm_run(about)
        tracker.describe(run, about)
        tracker.log_final(run, {"win_rate_vs_sft": rate, "kl": number + 1.0}, 10)
        tracker.client.set_terminated(run.info.run_id, "FINISHED")
        if arm == CHAMPION:
            name = params.run.registered_model
            tracker.client.create_registered_model(name)
            source = str(Path("out").resolve())
            version = tracker.client.create_model_version(name, source, run.info.run_id)
            tracker.client.set_registered_model_alias(name, "champion", version.version)


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"MLflow's server did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def page(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1600, "height": 1000})
    found = context.new_page()
    found.set_default_timeout(1000 * SECONDS)
    expect.set_options(timeout=1000 * SECONDS)
    yield found
    context.close()


def test_runs_sort_by_win_rate_and_charts_show_the_arms(address: str, page: Page) -> None:
    runs = f"{address}/#/experiments/1/runs"
    page.goto(runs)
    page.get_by_role("button", name="Sort: Created").click()
    page.keyboard.type("win_rate_vs_sft")
    page.get_by_text("win_rate_vs_sft", exact=True).first.click()
    expect(page.get_by_text("Sort: win_rate_vs_sft")).to_be_visible()
    wanted = sorted(RATES, key=lambda arm: RATES[arm], reverse=True)
    end = time.monotonic() + SECONDS  # rows move some time after the menu closes
    while (found := by_height(page)) != wanted and time.monotonic() < end:
        page.wait_for_timeout(200)
    assert found == wanted
    page.goto(f"{runs}?compareRunsMode=CHART")
    for arm in RATES:
        chart = page.get_by_text(f"{arm} (win_rate_vs_sft)").first
        chart.scroll_into_view_if_needed()
        expect(chart).to_be_visible()


def by_height(page: Page) -> list[str]:
    """The arms, from the top of the page down."""
    return sorted(RATES, key=lambda arm: height(page, arm))


def height(page: Page, arm: str) -> float:
    link = page.get_by_role("link", name=arm, exact=True)
    expect(link).to_be_visible()
    box = link.bounding_box()
    assert box is not None
    return box["y"]


def test_the_registry_shows_the_champion(address: str, page: Page, params: Params) -> None:
    page.goto(f"{address}/#/models/{params.run.registered_model}")
    row = page.get_by_role("row", name="Version 1")
    expect(row).to_contain_text("champion")
    row.get_by_role("link", name="Version 1").click()
    expect(page.get_by_role("link", name=CHAMPION)).to_be_visible()
