"""A DPO run that is killed again and again ends in the bytes of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from betaflow.training import checkpoints

REPOSITORY = Path(__file__).resolve().parents[2]
KILLS = 10

# Imports take seconds and training two: one process imports, and forks one for each run. `run
# FOLDER` starts a run, `wait` says how it ended.
SERVER = """
import json, os, sys
from pathlib import Path
import torch, torch._dynamo
from safetensors.torch import save_file
from betaflow.config import load_params
from betaflow.data.tokenise import Encoded
from betaflow.policy.loading import load_policy
from betaflow.policy.packing import all_sequences
from betaflow.training.dpo import ReferencedPairs, dpo_objective, train_dpo
from betaflow.training.prepare import prepare

torch.set_num_threads(1)
tiny, settings = sys.argv[1], load_params(Path(sys.argv[2]) / "params.yaml").dpo.training
settings = settings.model_copy(update=dict(batch_of="pairs", epochs=10.0, batch_size=8,
    micro_batch_tokens=60, warmup_steps=5, checkpoint_seconds=1e-9))


def say(text):
    os.write(1, f"{text}\\n".encode())


def train(folder):
    # The one place that knows the trainer's interface.
    sides = [[Encoded([1, 30 + n % 5], [*range(50, 50 + n % 7), token, 2]) for n in range(24)]
        for token in (40, 41)]
    scorer = prepare(load_policy(tiny), settings, pad=0)
    logps = [all_sequences(scorer, s, budget=200, precision="float32") for s in sides]
    pairs = ReferencedPairs([str(n) for n in range(24)], *sides, *logps)
    say("STARTED")
    trained, _ = train_dpo(scorer, pairs, pairs, settings, label="dpo",
        objective=dpo_objective(settings, 0.1), peak_rate=1e-3, seed=0, precision="float32",
        fingerprint="a")
    save_file({n: p.detach() for n, p in scorer.named_parameters()}, "weights.safetensors")
    Path("rows.json").write_text(json.dumps(trained.metrics))


say("READY")
for line in sys.stdin:
    word, *folder = line.split()
    if word == "wait":
        say(f"ENDED {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")
        continue
    pid = os.fork()
    if pid:
        say(f"PID {pid}")
        continue
    try:
        os.chdir(folder[0])
        train(folder[0])
        os._exit(0)
    except BaseException as error:
        say(f"FAILED {error!r}")
        os._exit(1)
"""


class Server:
    """The process that forks runs; `said` holds what the present run said."""

    def __init__(self, tiny: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(tiny), str(REPOSITORY)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.said: list[str] = []
        self.hear("READY")

    def tell(self, words: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()

    def hear(self, word: str) -> str:
        """What follows the word, once it is said."""
        assert self.process.stdout
        for line in self.process.stdout:
            first, _, rest = line.strip().partition(" ")
            if first == word:
                return rest
            self.said.append(line.strip())
        raise AssertionError(f"the server ended before it said {word}: {self.said}")

    def start(self, folder: Path) -> int:
        """Start a run; returns its process when it is about to train."""
        self.said = []
        self.tell(f"run {folder}")
        pid = int(self.hear("PID"))
        self.hear("STARTED")
        return pid

    def wait(self) -> int:
        self.tell("wait")
        return int(self.hear("ENDED"))


@pytest.fixture
def server(tiny: Path) -> Iterator[Server]:
    found = Server(tiny)
    yield found
    assert found.process.stdin
    found.process.stdin.close()
    found.process.wait(60)


class Chain(NamedTuple):
    """A run's workspace."""

    folder: Path

    def leftovers(self) -> list[Path]:
        """What a process killed in the middle of a save leaves."""
        return list((self.folder / checkpoints.folder("dpo")).glob(".*"))

    def result(self) -> tuple[bytes, list[dict[str, float]]]:
        rows = json.loads((self.folder / "rows.json").read_text())
        return (self.folder / "weights.safetensors").read_bytes(), rows


def new_chain(tmp_path: Path, name: str) -> Chain:
    (tmp_path / name).mkdir()
    return Chain(tmp_path / name)


def kill(chain: Chain, pid: int, delay: float, inside: bool) -> None:
    """Kill a run after a delay; `inside` a save, as soon as one goes on after it."""
    time.sleep(delay)
    end = time.monotonic() + 5
    while inside and not chain.leftovers() and time.monotonic() < end:
        pass
    os.kill(pid, signal.SIGKILL)


def test_killed_ten_times_it_ends_in_the_same_bytes(server: Server, tmp_path: Path) -> None:
    undisturbed = new_chain(tmp_path, "undisturbed")
    server.start(undisturbed.folder)
    began = time.monotonic()
    assert server.wait() == 0, server.said
    whole = time.monotonic() - began
    expected = undisturbed.result()
    assert len(expected[1]) == 30

    rng = random.Random(0)
    chain, chains = new_chain(tmp_path, "0"), 1
    killed = inside = 0
    steps: list[int] = []
    while killed < KILLS:
        pid = server.start(chain.folder)
        # Ten kills spread over about one run's time, every third in the middle of a save.
        kill(chain, pid, rng.uniform(0, whole / 5), inside=killed % 3 == 2)
        if server.wait() == -signal.SIGKILL:
            killed += 1
            inside += bool(chain.leftovers())
        else:
            assert chain.result() == expected, server.said
            chain, chains = new_chain(tmp_path, str(chains)), chains + 1
        steps += [int(said.split()[4]) for said in server.said if "resumed at step" in said]
    server.start(chain.folder)
    assert server.wait() == 0, server.said
    assert chain.result() == expected
    assert inside >= 1
    assert len(set(steps)) >= 5  # they went on from many places
    assert not chain.leftovers()
    assert not any("damaged" in said for said in server.said)
    print(f"{whole:.1f} s undisturbed; {killed} kills, {inside} in a save; went on from {steps}")
