"""Processes that train together (FSDP2 over gloo), and what they leave each other."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from betaflow.training import checkpoints, distributed, loop
from tasks._main import forget_checkpoints

REPOSITORY = Path(__file__).resolve().parents[2]

TOGETHER = '''
import os, resource, signal, sys
import torch
from torch import distributed as dist, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from betaflow.errors import UserError
from betaflow.training import distributed, loop
from betaflow.training.optim import optimizer_step


def train(signals={}, steps=6):
    """Train on 8 items a step, each rank on its share; send signals at given steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    if dist.is_initialized():
        mesh = init_device_mesh("cpu", (distributed.world(),))
        for module in (model[0], model[2], model):
            fully_shard(module, mesh=mesh)
            module.set_gradient_divide_factor(1.0)  # a sum: the loss is over the whole batch
            module.set_force_sum_reduction_for_comms(True)  # gloo has no PREMUL_SUM
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.1)

    def update(step):
        if step in signals:
            os.kill(os.getpid(), signals[step])
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        share = 8 // distributed.world()
        mine = x[distributed.rank() * share :][:share]
        loss = (model(mine) - mine[:, :3].sin()).square().sum() / 8
        loss.backward()
        total = torch.stack(distributed.every_rank(loss.detach())).sum()
        return {"loss": total.item(), "grad_norm": optimizer_step(optimizer, 0.05, 0.1)}

    done = loop.fit("run", steps, update, modules={"m": model}, optimizer=optimizer,
        fingerprint="a", checkpoint_seconds=0.0)
    return done.metrics, [distributed.whole(p).detach().clone() for p in model.parameters()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    last = distributed.rank() == distributed.world() - 1
    if sys.argv[1] == "kill":
        train({3: signal.SIGKILL} if last else {})
    elif sys.argv[1] == "end":
        rows, weights = train()
        if distributed.is_main():
            torch.set_printoptions(precision=10)
            print("RESULT", [w.flatten().tolist() for w in weights])
    elif sys.argv[1] == "stop":
        try:
            train({1: signal.SIGTERM} if last else {})
        except loop.Stopped as error:
            os.write(1, f"STOPPED {distributed.rank()} {error.code}\\n".encode())
        if distributed.is_main():
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
        try:
            train()
        except UserError as error:
            os.write(1, f"REFUSED {distributed.rank()} {error}\\n".encode())
    dist.barrier()
    dist.destroy_process_group()
'''


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("together") / "train.py"
    path.write_text(TOGETHER)
    return path


def torchrun(script: Path, count: int, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(count), str(script), *words],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def require_close(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.flatten(), other.flatten(), rtol=0, atol=1e-5)


def test_a_run_of_one_goes_on_as_two_is_killed_and_goes_on_as_one_or_four(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    train = runpy.run_path(str(script))["train"]
    rows, expected = train()
    forget_checkpoints("run")
    with pytest.raises(loop.Stopped):
        train({0: signal.SIGTERM})  # alone, without FSDP, step 0
    killed = torchrun(script, 2, "kill")
    assert "run: resumed at step 1 of 6" in killed.stdout, killed.stderr
    assert killed.returncode != 0
    assert checkpoints.newest("run") == checkpoints.folder("run") / "00000003"
    meta = json.loads((checkpoints.folder("run") / "00000003/state.json").read_text())
    assert meta["processes"] == 2
    shutil.copytree("out", "four/out")

    capsys.readouterr()
    again, weights = train()
    assert "run: resumed at step 3 of 6" in capsys.readouterr().out
    require_close(weights, expected)
    for ours, theirs in zip(again, rows, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)

    monkeypatch.chdir("four")
    four = torchrun(script, 4, "end")
    assert four.stdout.count("run: resumed at step 3 of 6") == 1, four.stderr
    (line,) = [x for x in four.stdout.splitlines() if x.startswith("RESULT")]
    found = [torch.tensor(one) for one in json.loads(line.removeprefix("RESULT"))]
    require_close(found, expected)


def test_all_processes_stop_when_one_hears_a_signal_or_the_disk_is_full(script: Path) -> None:
    done = torchrun(script, 2, "stop")
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert f"STOPPED {rank} 143" in done.stdout
    assert done.stdout.count("run: saved step 2") == 1
    for rank in (0, 1):
        assert f"REFUSED {rank} run: the checkpoint of step 3 could not be written" in done.stdout
    assert "00000002, is intact" in done.stdout
    assert "a file would be larger than is allowed here" in done.stdout


def test_a_single_process_is_its_own_group() -> None:
    tensor = torch.ones(2)
    assert (distributed.rank(), distributed.world(), distributed.is_main()) == (0, 1, True)
    assert distributed.whole(tensor) is distributed.like(tensor, tensor) is tensor
    assert distributed.local(tensor) is tensor
    assert [distributed.any_rank(flag) for flag in (True, False)] == [True, False]
    assert [distributed.from_main(flag) for flag in (True, False)] == [True, False]
    assert distributed.broadcast(7) == 7
    assert torch.equal(distributed.every_rank(tensor)[0], tensor)
