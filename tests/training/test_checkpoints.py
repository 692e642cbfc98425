"""Checkpoints: what is in one, damage that is found, disks that are full."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from betaflow.errors import UserError
from betaflow.training import checkpoints, loop, snapshot
from tasks._main import forget_checkpoints


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def start(width: int = 40, optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW):  # type: ignore[no-untyped-def]
    """A model with a frozen part and a buffer, and an optimizer of two groups."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(10, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 10)
    )
    model[2].weight.requires_grad_(False)
    groups = [{"params": list(model[2:].parameters())}, {"params": list(model[:2].parameters())}]
    return model, optimizer(groups, lr=0.01)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(8, 10)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(steps: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, **options) -> Path:  # type: ignore[no-untyped-def]
    rows = [{"step": n, "loss": 0.1 + n} for n in range(steps)]
    progress = checkpoints.Progress(steps, 1.5, rows)
    checkpoints.save("run", "a", {"policy": model}, optimizer, progress, **options)
    return checkpoints.folder("run") / f"{steps:08d}"


def two_checkpoints(**options) -> tuple[list[Path], list[dict[str, torch.Tensor]]]:  # type: ignore[no-untyped-def]
    """Checkpoints of steps 1 and 2, and the weights that they hold."""
    model, optimizer = start(**options)
    paths, weights = [], []
    for steps in (1, 2):
        step(model, optimizer)
        paths.append(save(steps, model, optimizer))
        weights.append({k: p.detach().clone() for k, p in model.named_parameters()})
    return paths, weights


def resume(**options) -> tuple[int, dict[str, torch.Tensor]]:  # type: ignore[no-untyped-def]
    model, optimizer = start(**options)
    found = checkpoints.resume("run", "a", {"policy": model}, optimizer)
    return found.step if found else 0, dict(model.named_parameters())


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


# What is in one


def test_a_checkpoint_holds_what_a_run_needs_and_no_more() -> None:
    (_, path), _ = two_checkpoints()
    assert sorted(p.name for p in path.iterdir()) == ["00000.safetensors", "state.json"]
    tensors = load_file(path / "00000.safetensors")
    trained = {"0.weight", "0.bias", "1.weight", "1.bias", "2.bias"}
    fields = ("exp_avg", "exp_avg_sq", "step")
    assert set(tensors) == (
        {f"model.policy.{name}" for name in trained}
        | {f"optimizer.policy.{name}.{field}" for name in trained for field in fields}
        | {"rng.cpu.0"}
        | ({"rng.cuda.0"} if torch.cuda.is_available() else set())
    )
    assert tensors["rng.cpu.0"].dtype == torch.uint8
    assert float(tensors["optimizer.policy.0.bias.step"]) == 2
    meta = json.loads((path / "state.json").read_text())
    assert (meta["step"], meta["seconds"], meta["fingerprint"], meta["processes"]) == (
        2, 1.5, "a", 1,
    )  # fmt: skip
    assert meta["metrics"] == [{"step": 0, "loss": 0.1}, {"step": 1, "loss": 1.1}]
    content = (path / "00000.safetensors").read_bytes()
    assert meta["files"] == [
        {
            "name": "00000.safetensors",
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    ]


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.RMSprop])
def test_a_run_goes_on_to_the_same_bits_from_many_files(
    monkeypatch: pytest.MonkeyPatch, optimizer: type[torch.optim.Optimizer]
) -> None:
    monkeypatch.setattr(snapshot, "PART_BYTES", 4000)
    model, its = start(optimizer=optimizer)
    step(model, its)
    files = sorted(save(1, model, its).glob("*.safetensors"))
    assert len(files) >= 3
    for file in files:
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 4000
    step(model, its)
    again, its = start(optimizer=optimizer)
    torch.randn(7)
    assert checkpoints.resume("run", "a", {"policy": again}, its) == checkpoints.Progress(
        1, 1.5, [{"step": 0, "loss": 0.1}]
    )
    step(again, its)
    assert same(dict(again.named_parameters()), dict(model.named_parameters()))


def test_the_optimizer_s_state_goes_by_name_not_by_place() -> None:
    model, optimizer = start()
    step(model, optimizer)
    save(1, model, optimizer)
    again, _ = start()
    other = torch.optim.AdamW(reversed(list(again.parameters())))
    checkpoints.resume("run", "a", {"policy": again}, other)
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        if theirs.requires_grad:
            assert torch.equal(other.state[ours]["exp_avg"], optimizer.state[theirs]["exp_avg"])
            assert other.state[ours]["step"] == 1


def test_an_optimizer_of_other_modules_is_refused() -> None:
    model, optimizer = start()
    step(model, optimizer)
    with pytest.raises(ValueError, match="none of the modules"):
        save(1, model[0], optimizer)


def test_the_best_is_kept_beyond_the_newest() -> None:
    model, optimizer = start()
    for steps in range(1, 6):
        save(steps, model, optimizer, best=2 if steps > 1 else 1)
    assert sorted(p.name for p in checkpoints.folder("run").iterdir()) == [
        "00000002", "00000004", "00000005",
    ]  # fmt: skip


def test_resuming_holds_no_file_of_a_checkpoint_that_is_gone() -> None:
    two_checkpoints()
    model, optimizer = start()
    checkpoints.resume("run", "a", {"policy": model}, optimizer)
    forget_checkpoints("run")
    assert str(checkpoints.folder("run")) not in Path("/proc/self/maps").read_text()


# Damage


def edited(path: Path, change: Callable[[dict], object]) -> None:
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remade(path: Path) -> None:
    """Whole, but of a model of another width."""
    model, optimizer = start(width=41)
    step(model, optimizer)
    shutil.rmtree(path.parent)
    save(2, model, optimizer)


def folder_in_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated": ("00000.safetensors", cut, "has .* bytes, not"),
    "one bit in a tensor": ("00000.safetensors", flip, "another checksum than it had"),
    "no tensors": ("00000.safetensors", Path.unlink, "No such file"),
    "a folder for a file": ("00000.safetensors", folder_in_place, "bytes, not|Is a directory"),
    "garbage": ("state.json", lambda p: p.write_bytes(b"\x00\xff{]"), "not JSON"),
    "an empty file": ("state.json", lambda p: p.write_bytes(b""), "not JSON"),
    "other JSON": ("state.json", lambda p: p.write_text("[1]"), "another checksum"),
    "another step": (
        "state.json", lambda p: edited(p, lambda m: m.update(step=1)), "another checksum",
    ),
    "another metric": (
        "state.json",
        lambda p: edited(p, lambda m: m["metrics"][0].update(loss=0.2)),
        "another checksum",
    ),
    "no checksum": ("state.json", lambda p: edited(p, lambda m: m.pop("sha256")), "checksum"),
    "no state": ("state.json", Path.unlink, "No such file"),
    "wrong shapes": ("state.json", remade, r"policy.0.bias has shape \(41,\), not \(40,\)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_said_removed_and_passed_over(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (first, second), weights = two_checkpoints()
    name, damage, reason = DAMAGE[kind]
    damage(second / name)
    found, ours = resume()
    assert found == 1
    assert same(ours, weights[0])
    assert [p.name for p in checkpoints.folder("run").iterdir()] == [first.name]
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("run: checkpoint 00000002 is damaged (")
    assert said.endswith("); using the one before")
    assert re.search(reason, said)


def test_where_all_are_damaged_the_run_starts_again(capsys: pytest.CaptureFixture[str]) -> None:
    paths, _ = two_checkpoints()
    for path in paths:
        flip(path / "00000.safetensors")
    untouched = dict(start()[0].named_parameters())
    found, ours = resume()
    assert found == 0
    assert same(ours, untouched)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("using the one before")
    assert second.endswith("starting again")
    assert list(checkpoints.folder("run").iterdir()) == []


def test_checkpoints_of_other_inputs_are_removed_and_it_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    two_checkpoints()
    model, optimizer = start()
    assert checkpoints.resume("run", "b", {"policy": model}, optimizer) is None
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"run: removed checkpoint {step:08d}, of other inputs or code" for step in (1, 2)
    ]
    assert list(checkpoints.folder("run").iterdir()) == []


def test_what_can_t_be_read_for_now_is_not_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    two_checkpoints()

    def refuse(path: Path) -> str:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))  # root is never refused

    monkeypatch.setattr(snapshot, "_file_sha256", refuse)
    with pytest.raises(UserError, match=r"00000002 can't be read \(Permission denied\)"):
        resume()
    assert len(list(checkpoints.folder("run").iterdir())) == 2


def test_what_a_killed_process_left_goes_at_the_next_start() -> None:
    (path, _), _ = two_checkpoints()
    for name in (".00000003.0123456789abcdef0123456789abcdef", ".00000001.fedc"):
        shutil.copytree(path, path.with_name(name))
    other = Path("out/.local/checkpoints/other/.00000001.0123")
    other.mkdir(parents=True)
    assert resume()[0] == 2
    assert sorted(p.name for p in checkpoints.folder("run").iterdir()) == ["00000001", "00000002"]
    assert other.exists()


# Full disks


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system with given options at the workspace."""
    found: list[Path] = []

    def mount(options: str) -> Path:
        path = tmp_path / "disk"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        found.append(path)
        monkeypatch.chdir(path)
        return path

    yield mount
    os.chdir(tmp_path)
    for path in found:
        subprocess.run(["umount", str(path)], check=True)


def require_intact(weights: dict[str, torch.Tensor], **options) -> None:  # type: ignore[no-untyped-def]
    folder = checkpoints.folder("run")
    assert sorted(p.name for p in folder.iterdir()) == ["00000001", "00000002"]
    found, ours = resume(**options)
    assert found == 2
    assert same(ours, weights)


def refused(reason: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Whether a third checkpoint can't be written, with the message that is due."""
    try:
        save(3, model, optimizer)
    except UserError as error:
        assert str(error).startswith(
            f"run: the checkpoint of step 3 could not be written to {checkpoints.folder('run')}: "
            f"{reason}. The last good checkpoint, {checkpoints.folder('run')}/00000002, is intact"
        )
        return True
    return False


def test_a_full_disk_leaves_the_last_checkpoint_intact(
    mounted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = mounted("size=1m")
    monkeypatch.setattr(snapshot, "PART_BYTES", 8000)
    _, weights = two_checkpoints(width=100)
    model, optimizer = start(width=100)
    step(model, optimizer)
    ballast, failed = disk / "ballast", 0
    for pages in range(60):
        # Room for one page more each time: it runs out in every file in turn.
        ballast.unlink(missing_ok=True)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        ballast.write_bytes(b"x" * (free - 4096 * pages))
        if not refused("the disk is full", model, optimizer):
            break
        failed += 1
        require_intact(weights[1], width=100)
    assert failed > 5
    assert sorted(p.name for p in checkpoints.folder("run").iterdir()) == ["00000002", "00000003"]


def test_a_disk_with_no_more_files_leaves_it_intact(mounted: Callable[[str], Path]) -> None:
    disk = mounted("size=1m,nr_inodes=40")
    _, weights = two_checkpoints()
    model, optimizer = start()
    step(model, optimizer)
    taken = []
    for n in range(os.statvfs(disk).f_favail):
        taken.append(disk / str(n))
        taken[-1].touch()
    failed = 0
    while refused("the disk is full", model, optimizer):
        require_intact(weights[1])
        taken.pop().unlink()
        failed += 1
    assert failed >= 2  # its folder, its files


def test_a_run_on_a_full_disk_goes_on_when_there_is_room(mounted: Callable[[str], Path]) -> None:
    disk = mounted("size=1m")

    def train(fill_at: int) -> torch.Tensor:
        model, optimizer = start()

        def update(at: int) -> dict[str, float]:
            if at == fill_at:
                free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
                (disk / "ballast").write_bytes(b"x" * (free - 4096))
            step(model, optimizer)
            return {"loss": 1.0}

        loop.fit(
            "run", 6, update, modules={"policy": model}, optimizer=optimizer, fingerprint="a",
            checkpoint_seconds=0.0,
        )  # fmt: skip
        return model[0].weight

    expected = train(-1)
    forget_checkpoints("run")
    with pytest.raises(UserError, match=r"the disk is full.*00000003, is intact"):
        train(3)
    assert checkpoints.newest("run") == checkpoints.folder("run") / "00000003"
    (disk / "ballast").unlink()
    assert torch.equal(train(-1), expected)


def test_a_file_over_the_limit_says_so() -> None:
    _, weights = two_checkpoints()
    model, optimizer = start()
    step(model, optimizer)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        assert refused("a file would be larger than is allowed here", model, optimizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    require_intact(weights[1])


def test_a_quota_used_up_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock: no quota can be set on a file system that a test can mount."""
    _, weights = two_checkpoints()
    model, optimizer = start()
    step(model, optimizer)

    def over_quota(tensors: object, path: Path) -> None:
        save_file({"a": torch.zeros(3)}, path)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "save_file", over_quota)
        assert refused("the disk quota is used up", model, optimizer)
    require_intact(weights[1])


def test_a_first_checkpoint_with_no_room_says_that_there_is_none(
    mounted: Callable[[str], Path],
) -> None:
    mounted("size=8k")
    model, optimizer = start()
    with pytest.raises(UserError, match=r"the disk is full\. There is no earlier one"):
        save(1, model, optimizer)
