"""Fixtures that the layers' tests share."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import pytest
import torch
from playwright.sync_api import Browser, sync_playwright

from betaflow.config import Params, ScratchSettings, load_params
from betaflow.policy.loading import save_model
from betaflow.policy.scratch import make_model, train_tokenizer
from betaflow.worlds.sentiment import write_review

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
NO_SHARED = "../shared is not beside this checkout"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(NO_SHARED)
    return SHARED


@pytest.fixture(scope="session")
def params() -> Params:
    return load_params(REPOSITORY / "params.yaml")


@pytest.fixture(scope="session")
def texts() -> list[str]:
    rng = random.Random(0)
    return [write_review(rng).text for _ in range(200)]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A folder with a two-layer Llama (random weights, not tiny logits) and its tokenizer."""
    settings = ScratchSettings(vocabulary=400, hidden=64, layers=2, heads=2, max_positions=128)
    tokenizer = train_tokenizer(texts, settings.vocabulary)
    model = make_model(settings, tokenizer, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)  # sharp next-token distributions: errors show
    folder = tmp_path_factory.mktemp("tiny")
    save_model(model, tokenizer, folder)
    return folder


NO_CHROMIUM = "no Chromium: install it (Debian: chromium) or name it in BETAFLOW_CHROMIUM"
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The Chromium of `BETAFLOW_CHROMIUM` or of the path, with a profile of its own.

    For one module: while it is open, `asyncio.run` can't be called in this process.
    """
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = os.environ.get("BETAFLOW_CHROMIUM") or next(filter(None, map(shutil.which, names)), "")
    if not found:
        pytest.skip(NO_CHROMIUM)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=QUIET)
        yield browser
        browser.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly (of a browser: in CI) what tests were skipped: a pass says nothing of them."""
    reasons = [str(one.longrepr) for one in terminalreporter.stats.get("skipped", [])]
    browser = sum(NO_CHROMIUM in reason for reason in reasons)
    if browser and os.environ.get("CI"):
        terminalreporter.section("NO TEST RAN IN A BROWSER", sep="!", red=True, bold=True)
        terminalreporter.line(f"{browser} tests were skipped: {NO_CHROMIUM}")
    alone = sum(NO_SHARED in reason for reason in reasons)
    if alone:
        terminalreporter.section("NO TEST READ ../shared", sep="!", red=True, bold=True)
        terminalreporter.line(f"{alone} tests were skipped: {NO_SHARED}")
