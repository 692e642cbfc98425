"""The shared loop: what it feeds, what it keeps, and that a stopped run goes on exactly."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from betaflow.errors import UserError
from betaflow.training import checkpoints, loop
from betaflow.training.optim import learning_rate


@given(count=st.integers(1, 40), batch=st.integers(1, 50), epochs=st.integers(1, 3))
def test_every_item_is_seen_once_an_epoch(count: int, batch: int, epochs: int) -> None:
    steps = -(-count * epochs // batch)
    seen = [i for step in range(steps) for i in loop.batch_indices(count, batch, 0, step)]
    for epoch in range(epochs):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert max(Counter(seen).values()) - min(Counter(seen).values()) <= -(-batch // count)


def test_epochs_differ_and_seeds_differ() -> None:
    assert loop.shuffled(50, 0, 0) != loop.shuffled(50, 0, 1)
    assert loop.shuffled(50, 0, 0) != loop.shuffled(50, 1, 0)


def test_the_schedule(params) -> None:  # type: ignore[no-untyped-def]
    settings = params.dpo.training.model_copy(update={"warmup_steps": 4, "schedule": "linear"})
    rates = [learning_rate(settings, 1.0, step, 14) for step in range(14)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[-1] == pytest.approx(0.1)
    cosine = settings.model_copy(update={"schedule": "cosine"})
    assert learning_rate(cosine, 1.0, 9, 14) == pytest.approx(0.5)


RUN = """
import json, os, signal, sys, torch
from betaflow.training import loop
torch.manual_seed(0)
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
kill_at, name = int(sys.argv[1]), getattr(signal, sys.argv[2])
def update(step):
    if step == kill_at:
        os.kill(os.getpid(), name)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
    loss = (model(x) - x.sum(-1, keepdim=True)).square().mean()
    loss.backward(); optimizer.step(); optimizer.zero_grad()
    return {"loss": loss.item()}
done = loop.fit("line", 12, update, modules={"m": model}, optimizer=optimizer,
    fingerprint=sys.argv[3], checkpoint_seconds=0.0)
print("RESULT" + json.dumps([done.metrics, [p.tolist() for p in model.parameters()]]))
"""


def run(folder: Path, kill_at: int, name: str = "SIGTERM", fingerprint: str = "a"):  # type: ignore[no-untyped-def]
    return subprocess.run(
        [sys.executable, "-c", RUN, str(kill_at), name, fingerprint],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def result(done: subprocess.CompletedProcess[str]) -> object:
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("RESULT")]
    return json.loads(line.removeprefix("RESULT"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> object:
    return result(run(tmp_path_factory.mktemp("whole"), -1))


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGKILL", -9)])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    tmp_path: Path, whole: object, name: str, status: int
) -> None:
    stopped = run(tmp_path, 7, name)
    assert stopped.returncode == status
    again = run(tmp_path, -1)
    # A signal that can be heard saves first; SIGKILL goes back to the last checkpoint.
    step = 7 if name == "SIGKILL" else 8
    assert f"resumed at step {step} of 12" in again.stdout
    assert result(again) == whole


def test_a_checkpoint_of_other_inputs_is_not_used(tmp_path: Path, whole: object) -> None:
    run(tmp_path, 7)
    again = run(tmp_path, -1, fingerprint="b")
    assert "resumed" not in again.stdout
    assert result(again) == whole


def test_old_checkpoints_of_other_inputs_do_not_push_out_the_new(
    tmp_path: Path, whole: object
) -> None:
    run(tmp_path, 9, fingerprint="b")
    assert run(tmp_path, 3).returncode == 143
    again = run(tmp_path, -1)
    assert "resumed at step 4 of 12" in again.stdout
    assert result(again) == whole


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, whole: object
) -> None:
    run(tmp_path, 7)
    folders = sorted((tmp_path / "out/.local/checkpoints/line").iterdir())
    assert len(folders) == checkpoints.KEEP
    weights = folders[-1] / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    again = run(tmp_path, -1)
    assert "resumed at step 7 of 12" in again.stdout
    assert result(again) == whole


def test_a_metric_that_is_not_finite_stops_with_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match="loss is not finite at step 2"):
        loop.fit(
            "bad",
            5,
            lambda step: {"loss": float("nan") if step == 2 else 1.0},
            modules={"m": model},
            optimizer=torch.optim.AdamW(model.parameters()),
            fingerprint="x",
            checkpoint_seconds=60.0,
        )
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
