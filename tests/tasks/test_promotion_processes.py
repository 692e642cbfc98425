"""Promotions in processes of their own: killed, at once, and over a server from elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from promotions import BETTER, GOOD, SAME, make_sweep
from vllm_server import serve_model

from betaflow.config import Params
from betaflow.policy.loading import load_policy
from tasks import _claim, tracking
from tasks._registry import Registry
from tasks.promote import promote_arm
from tasks.rollback import roll_back


class Trials(NamedTuple):
    """What `promotion_trial.py` told, and the workspaces as it left them."""

    told: dict[str, Any]
    folders: dict[str, Path]
    params: Params


@pytest.fixture(scope="module")
def trials(
    database: Path, tiny: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trials:
    script, folders = Path(__file__).with_name("promotion_trial.py"), {}
    for kind in ("kill", "race", "twice"):
        folders[kind] = tmp_path_factory.mktemp(kind)
        shutil.copy(database, folders[kind] / "mlflow.db")
        params = make_sweep(folders[kind], tiny, repository)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_TRACK")}
    done = subprocess.run(
        [sys.executable, str(script), *map(str, folders.values()), GOOD, BETTER, SAME],
        env=kept | {"PYTHONPATH": os.pathsep.join([str(repository), str(repository / "tests")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return Trials(json.loads(done.stdout.splitlines()[-1]), folders, params)


@pytest.fixture
def left(trials: Trials, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What was told of one kind; we are in the workspace that it left."""
    folder = trials.folders[request.param]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    return trials.told[request.param]


@pytest.mark.parametrize("left", ["kill"], indirect=True)
def test_a_promotion_that_is_killed_leaves_the_old_champion(
    left: Any, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL at each step: the old one, until the step that makes the new one, which is whole."""
    *before, after = left
    assert before == [[1, GOOD]] * 4
    assert after[1] == BETTER
    # What was cut off calls itself neither accepted nor champion; the alias decides.
    versions = tracking.client().search_model_versions("name = 'betaflow'")
    found = {int(one.version): one.tags.get("betaflow.decision") for one in versions}
    assert found == {1: "accepted", 2: None} | dict.fromkeys(range(3, 7), "pending")
    promoted = [one for one in versions if "Promoted" in (one.description or "")]
    assert [int(one.version) for one in promoted] == [1]
    monkeypatch.setattr(_claim, "PATIENCE", float("inf"))  # of what the last one left
    assert roll_back(trials.params).version == 1
    again = promote_arm(trials.params, BETTER)
    assert again.promoted
    assert again.version > after[0]
    assert roll_back(trials.params).version == 1


@pytest.mark.parametrize("left", ["race"], indirect=True)
def test_of_two_promotions_at_once_one_wins(left: Any, trials: Trials) -> None:
    exits, (number, arm) = left
    assert sorted(exits) == [0, 1]
    assert arm == (BETTER, SAME)[exits.index(0)]
    lost = refused()
    assert len(lost) == 1
    assert f"now: version {number}" in lost[0].tags["betaflow.rule.same_champion"]
    assert holder("challenger") == int(lost[0].version)
    assert tracking.client().get_registered_model("betaflow").tags == {}
    assert roll_back(trials.params).version == 1


@pytest.mark.parametrize("left", ["twice"], indirect=True)
def test_two_promotions_of_one_arm_are_about_two_versions(left: Any, trials: Trials) -> None:
    """One of them takes the version that was refused before; the other can't call it refused."""
    exits, (number, _) = left
    assert sorted(exits) == [0, 1]
    versions = tracking.client().search_model_versions("name = 'betaflow'")
    decisions = {int(one.version): one.tags["betaflow.decision"] for one in versions}
    assert decisions == {1: "accepted", 2: "refused", 3: "refused"} | {number: "accepted"}
    assert number in (2, 3)
    assert holder("challenger") == 5 - number
    assert not [one for one in versions if "betaflow.in_use" in one.tags]
    assert promote_arm(trials.params, SAME).against == f"version {number} ({BETTER})"


def refused() -> list[Any]:
    found = tracking.client().search_model_versions("name = 'betaflow'")
    return [version for version in found if version.tags["betaflow.decision"] == "refused"]


def holder(alias: str) -> int:
    found = Registry(tracking.client(), "betaflow").holder(alias)
    assert found is not None
    return found.number


def test_from_another_machine_through_the_registry(
    sweep: Params, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch, database: Path,
) -> None:  # fmt: skip
    """A server that alone can read the store; the workspace is gone when the model is loaded.

    It is fetched by the commands that the docs and the model card show, and vLLM serves it.
    """
    import mlflow

    theirs = tmp_path_factory.mktemp("server")
    shutil.copy(database, theirs / "mlflow.db")
    with serving(theirs) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert promote_arm(sweep, GOOD).promoted
        arm = tmp_path_factory.mktemp("kept") / GOOD
        shutil.copytree(f"out/dpo/{GOOD}", arm)
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        shutil.rmtree(tmp_path)
        assert Registry(tracking.client(), "betaflow").download(1, "nothing", arm) is None
        found = mlflow.transformers.load_model("models:/betaflow@champion")
        ids = torch.arange(5, 25)[None]
        with torch.no_grad():
            assert torch.equal(found.model(ids).logits, load_policy(arm)(ids).logits)
        assert not list(Path.cwd().iterdir())
        download("models:/betaflow@champion", "champion")
        (line,) = re.findall("mlflow artifacts download .*", Path("champion/README.md").read_text())
        *_, card_address, _, folder = line.split()
        assert folder == GOOD
        download(card_address, folder)
        mlflow.set_tracking_uri(None)
    assert list(theirs.glob("store/**/model.safetensors"))
    files = {path.name: path.read_bytes() for path in Path("champion/model").iterdir()}
    assert files == {path.name: path.read_bytes() for path in Path(GOOD, "model").iterdir()}
    prompt = ids[0, :12].tolist()
    with serve_model(Path("champion/model"), Path("log"), "champion") as address:
        served = complete(address, prompt, tokens=16)
    assert served == greedy(arm, prompt, tokens=16)


def download(address: str, folder: str) -> None:
    command = [sys.executable, *f"-m mlflow artifacts download -u {address} -d {folder}".split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def complete(address: str, prompt: list[int], tokens: int) -> list[int]:
    """What the served model says at T = 0, as token ids."""
    body = {"model": "champion", "prompt": prompt, "temperature": 0, "max_tokens": tokens}
    body |= {"return_token_ids": True, "ignore_eos": True}
    request = urllib.request.Request(
        f"{address}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request) as answer:
        found: list[int] = json.load(answer)["choices"][0]["token_ids"]
    return found


def greedy(folder: Path, prompt: list[int], tokens: int) -> list[int]:
    """The likeliest tokens one after another, by Hugging Face's forward pass."""
    model, ids = load_policy(folder).eval(), list(prompt)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """`mlflow server --serve-artifacts` with its store in `folder`; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = f"server --backend-store-uri sqlite:///{folder}/mlflow.db --serve-artifacts"
    command += f" --artifacts-destination {folder}/store --host 127.0.0.1 --port {port} --workers 1"
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command.split()],
            cwd=folder, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        for _ in range(1200):
            assert server.poll() is None, (folder / "log").read_text()
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
