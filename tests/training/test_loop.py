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
from betaflow.progress import track
from betaflow.training import checkpoints, loop
from betaflow.training.optim import learning_rate, optimizer_step
from tasks._main import forget_checkpoints


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
    (weights,) = folders[-1].glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    again = run(tmp_path, -1)
    assert "resumed at step 7 of 12" in again.stdout
    assert result(again) == whole


class Stumble(Exception):
    """Stands for whatever ends a run between two steps."""


def line(steps: int = 12, stumble: int = -1, **options):  # type: ignore[no-untyped-def]
    """A line fitted in this process, with noise from torch's own random state."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    evaluate = options.pop("evaluate", None)

    def update(step: int) -> dict[str, float]:
        if step == stumble:
            raise Stumble
        x = torch.randn(4, 3)
        loss = (model(x) - x.sum(-1, keepdim=True)).square().mean()
        loss.backward()
        norm = optimizer_step(optimizer, 0.1, 10.0)
        return {"loss": loss.item(), "grad_norm": norm, **(evaluate(step) if evaluate else {})}

    given = {"fingerprint": "a", "checkpoint_seconds": 0.0, **options}
    done = loop.fit("line", steps, update, modules={"m": model}, optimizer=optimizer, **given)
    return done._replace(seconds=0.0), model.weight.detach().clone()


def names() -> list[str]:
    return sorted(path.name for path in checkpoints.folder("line").iterdir())


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_torch_s_random_state_goes_on_too(workspace: Path) -> None:
    expected = line()
    forget_checkpoints("line")
    with pytest.raises(Stumble):
        line(stumble=5)
    torch.randn(100)
    done, weight = line()
    assert done == expected[0]
    assert torch.equal(weight, expected[1])


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_checkpoints_are_kept(workspace: Path, keep: int) -> None:
    line(keep=keep)
    assert names() == [f"{step:08d}" for step in range(13 - keep, 13)]


# eval/loss after every second step: the best is that of step 3, equalled at step 7.
SCORES = {1: 0.9, 3: 0.5, 5: 0.6, 7: 0.5, 9: 0.7, 11: 0.8}
BEST: dict = {
    "best_of": "eval/loss",
    "evaluate": lambda step: {"eval/loss": SCORES[step]} if step in SCORES else {},
}


@pytest.mark.parametrize(("patience", "steps"), [(None, 12), (1, 6), (2, 8), (4, 12), (5, 12)])
def test_the_best_weights_are_put_back(
    workspace: Path, patience: int | None, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    done, weight = line(patience=patience, **BEST)
    assert len(done.metrics) == steps
    assert done.best_step == 3
    assert names() == ["00000004", f"{steps - 1:08d}", f"{steps:08d}"]
    assert ("stopped after step" in capsys.readouterr().out) == (steps < 12)
    forget_checkpoints("line")
    assert torch.equal(weight, line(steps=4)[1])


def test_without_best_of_the_last_weights_stay(workspace: Path) -> None:
    done, weight = line(evaluate=BEST["evaluate"])
    assert done.best_step is None
    forget_checkpoints("line")
    best, last = line(best_of="eval/loss", evaluate=lambda step: {"eval/loss": -step})
    assert best.best_step == 11
    assert torch.equal(weight, last)


def test_early_stopping_decides_the_same_wherever_the_run_was_stopped(workspace: Path) -> None:
    expected, weight = line(patience=2, **BEST)
    for stumble in range(8):
        for seconds in (0.0, 60.0):
            forget_checkpoints("line")
            with pytest.raises(Stumble):
                line(patience=2, stumble=stumble, checkpoint_seconds=seconds, **BEST)
            again = line(patience=2, **BEST)
            assert again[0] == expected
            assert torch.equal(again[1], weight)
    # What is over stays over.
    again = line(patience=2, stumble=0, **BEST)
    assert again[0] == expected
    assert torch.equal(again[1], weight)


def test_a_damaged_best_checkpoint_is_made_again(workspace: Path) -> None:
    expected, weight = line(patience=2, **BEST)
    (file,) = (checkpoints.folder("line") / "00000004").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"the best checkpoint, .*00000004, is damaged .*run again"):
        line(patience=2, **BEST)
    assert names() == []
    again = line(patience=2, **BEST)
    assert again[0] == expected
    assert torch.equal(again[1], weight)


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


def bad_at(step: int, value: float = float("inf")) -> dict:
    return {"evaluate": lambda at: {"eval/loss": value if at == step else 1.0}}


def ids(step: int) -> list[str]:
    return [f"pair-{step}-{n}" for n in range(11)]


def test_what_is_not_finite_is_named_with_its_items_and_where_to_go_back(workspace: Path) -> None:
    with pytest.raises(UserError) as caught:
        line(items=ids, **bad_at(0))
    assert "eval/loss is not finite at step 0" in str(caught.value)
    assert "there is none yet" in str(caught.value)
    with pytest.raises(UserError) as caught:
        line(items=ids, **bad_at(4))
    text = str(caught.value)
    assert "line: eval/loss is not finite at step 4" in text
    assert "pair-4-0, " in text
    assert "pair-4-7 and 3 more" in text
    assert f"{checkpoints.folder('line')}/00000004 (step 4)" in text
    assert names() == ["00000003", "00000004"]


def test_an_update_names_the_items_itself(workspace: Path) -> None:
    def update(step: int) -> dict[str, float]:
        raise loop.NotFinite(["loss", "logps/chosen"], ["pair-9"])

    model = torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match=r"bad: loss, logps/chosen is .* items are pair-9\. The"):
        loop.fit(
            "bad", 5, update, modules={"m": model}, items=ids, fingerprint="x",
            optimizer=torch.optim.AdamW(model.parameters()), checkpoint_seconds=60.0,
        )  # fmt: skip


def test_no_step_is_taken_on_a_gradient_that_is_not_finite() -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    (model(torch.ones(1, 2)) * float("inf")).sum().backward()
    with pytest.raises(loop.NotFinite) as caught:
        optimizer_step(optimizer, 0.1, 1.0)
    assert (caught.value.metrics, caught.value.items) == (["grad_norm"], [])
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None
    assert not optimizer.state


def test_no_checkpoint_holds_weights_that_are_not_finite(workspace: Path) -> None:
    model = torch.nn.Linear(1, 1)

    def update(step: int) -> dict[str, float]:
        if step == 3:
            torch.nn.init.constant_(model.bias, float("nan"))
        return {"loss": 1.0}

    with pytest.raises(UserError, match=r"the weights m\.bias is not finite at step 3.*00000003"):
        loop.fit(
            "line", 5, update, modules={"m": model}, fingerprint="x",
            optimizer=torch.optim.AdamW(model.parameters()), checkpoint_seconds=0.0,
        )  # fmt: skip
    assert names() == ["00000002", "00000003"]


def test_of_many_processes_one_shows_its_progress(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (True, False):
        with track(2, "dpo", quiet=quiet) as progress:
            progress.update(2, loss=0.5)
    assert capsys.readouterr().err.count("dpo: 2/2 step") == 1
