"""The whole pipeline, on real parts, through each of its doors.

One workspace is run by `dvc repro` (serial), another by `python -m flows.align` (parallel), and
the second then by a deployment on real Prefect servers.
"""

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

import pandas as pd
import psutil
import pytest
from workspaces import SMALL_WORLD, change, environment, lock, make, run

# The shared fixture's pipelines count for the first test: minutes.
pytestmark = [pytest.mark.door, pytest.mark.timeout(1800)]
DVC = [sys.executable, "-m", "dvc"]
ALIGN = [sys.executable, "-m", "flows.align"]
DPO = "dpo-b0.1-lr0.0005-s0"
PPO = "ppo-b0.1-kl0-lr0.0005-s0"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The serial and the parallel workspace, run beside each other."""
    serial, parallel = (
        make(tmp_path_factory.mktemp(name), SMALL_WORLD) for name in ("serial", "parallel")
    )
    log = tmp_path_factory.mktemp("log") / "serial.log"
    with log.open("w") as file:
        repro = subprocess.Popen(
            [*DVC, "repro", "-q"], cwd=serial, env=environment(), stdout=file, stderr=file
        )
        done = run(ALIGN, parallel)
        assert repro.wait() == 0, log.read_text()[-3000:]
    assert "out/compare/report.html" in done.stdout
    assert "make ui" in done.stdout
    return serial, parallel


@pytest.fixture(scope="module")
def serial(both: tuple[Path, Path]) -> Path:
    return both[0]


@pytest.fixture(scope="module")
def parallel(both: tuple[Path, Path]) -> Path:
    return both[1]


def test_serial_and_parallel_leave_the_same_lock(serial: Path, parallel: Path) -> None:
    assert lock(serial) == lock(parallel)


def test_the_table_has_a_row_per_arm_and_temperature(parallel: Path) -> None:
    table = pd.read_csv(parallel / "out/compare/table.csv")
    assert [tuple(row) for row in table[["arm", "temperature"]].to_numpy()] == [
        (arm, temperature) for arm in ("sft", DPO, PPO) for temperature in (0.0, 1.0)
    ]
    estimates = ("gold_reward", "kl", "win_rate_vs_sft", "win_rate_vs_ppo")
    for name in estimates:
        low, high = table[f"{name}_low"], table[f"{name}_high"]
        assert ((low <= table[name]) & (table[name] <= high)).all(), name
    for name in ("method", "beta", "learning_rate", "seed", "train_tokens", "train_seconds"):
        assert name in table
    assert (table["completion_tokens"] > 0).all()
    assert (table.loc[table.arm == "sft", "win_rate_vs_sft"] == 0.5).all()
    assert (table.loc[table.arm == "sft", "kl"] == 0).all()
    assert (table.loc[table.arm == DPO, "kl"] > 0).all()
    assert (table.loc[table.arm == DPO, "betaflow_preference/acc_stderr"] > 0).all()
    assert json.loads((parallel / "out/compare/table.json").read_text())
    report = (parallel / "out/compare/report.html").read_text()
    assert "default-src &#39;none&#39;; script-src &#39;sha256-" in report
    assert "http" not in re.sub(r"<script>.*?</script>|http-equiv", "", report, flags=re.DOTALL)
    for name in ("metrics", "plots"):
        shown = json.loads(run([*DVC, name, "show", "--json"], parallel).stdout)
        assert DPO in json.dumps(shown)


def test_the_samples_are_vllm_s_and_agree_with_hugging_face(parallel: Path) -> None:
    samples = pd.read_parquet(parallel / f"out/samples/{DPO}.parquet")
    gap = (samples.logprob - samples.policy_logprob).abs() / samples.completion_tokens
    assert gap.max() < 1e-3
    assert samples.groupby(["temperature", "seed", "domain"]).size().min() == 4
    assert samples.loc[samples.temperature == 1.0, "kl"].notna().all()
    assert samples.loc[samples.temperature != 1.0, "kl"].isna().all()


HARNESS = """
import json
from betaflow.config import load_params
from tasks.benchmark import benchmark

params = load_params()
settings = params.benchmark.model_copy(update={"engine": "vllm"})
found = benchmark(params.model_copy(update={"benchmark": settings}), "sft", "out/sft")
print("RESULT" + json.dumps(found))
"""


def test_lm_eval_finds_the_same_through_vllm(parallel: Path) -> None:
    lines = run([sys.executable, "-c", HARNESS], parallel).stdout.splitlines()
    (told,) = (line.removeprefix("RESULT") for line in lines if line.startswith("RESULT"))
    through, plain = json.loads(told), json.loads((parallel / "out/benchmark/sft.json").read_text())
    assert (through["engine"], plain["engine"]) == ("vllm", "hf")
    assert set(through["results"]) == set(plain["results"]) != set()
    for task, values in plain["results"].items():
        assert through["results"][task] == pytest.approx(values, rel=1e-3)
        documents = through["documents"][task], plain["documents"][task]
        assert documents[0]["hash"] == documents[1]["hash"]


def test_mlflow_answers_which_beta(parallel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{parallel}/mlflow.db")
    experiment = client.get_experiment_by_name("betaflow").experiment_id
    runs = client.search_runs([experiment], order_by=["metrics.win_rate_vs_sft DESC"])
    by_arm = {r.data.tags.get("betaflow.arm", "sweep"): r for r in runs}
    assert set(by_arm) == {"sweep", "sft", "reward", DPO, PPO}
    table = pd.read_csv(parallel / "out/compare/table.csv")
    for arm in (DPO, PPO):
        (row,) = table[(table.arm == arm) & (table.temperature == 1.0)].to_dict("records")
        found = by_arm[arm].data
        assert found.metrics["win_rate_vs_sft"] == pytest.approx(row["win_rate_vs_sft"])
        assert found.params["beta"] == "0.1"
        assert found.tags["dvc.out/pairs"]
        assert len(found.tags["mlflow.source.git.commit"]) == 40
    sweep = by_arm["sweep"].info.run_id
    assert {a.path for a in client.list_artifacts(sweep)} >= {"report.html", "table.csv", "plots"}
    assert [m.name for m in client.search_logged_models([experiment])]


def test_nothing_changed_nothing_is_done(parallel: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (parallel / "out").rglob("*") if p.is_file()}
    done = run(ALIGN, parallel)
    assert "start" not in done.stdout
    after = {p: p.stat().st_mtime_ns for p in before}
    changed = {str(p.relative_to(parallel)) for p in before if before[p] != after[p]}
    assert changed <= {"out/.local/align.lock"}


def test_a_stage_that_is_killed_goes_on_from_its_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, serial: Path
) -> None:
    """SIGTERM in the middle of `dvc repro` of SFT; the next one ends with the same bytes."""
    folder = tmp_path_factory.mktemp("stopped")
    shutil.copytree(serial, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("cache"))
    shutil.rmtree(folder / "out/sft")
    command = [sys.executable, "-m", "tasks.sft"]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(BETAFLOW_PROGRESS="lines"), stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr and process.stdout
    for line in process.stderr:
        if "@progress sft" in line:
            break
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert process.returncode == 143
    assert "the next run goes on from there" in out
    assert not (folder / "out/sft").exists()
    assert "resumed at step" in run(command, folder).stdout
    for name in ("model.safetensors", "metrics.jsonl", "summary.json", "tokenizer.json"):
        ours, theirs = (place / "out/sft" / name for place in (folder, serial))
        assert ours.read_bytes() == theirs.read_bytes(), name


# The deployment, last: it changes the parallel workspace.


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def background(command: list[str], folder: Path, log: Path, **more: str) -> Iterator[None]:
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(**more), stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def until_up(url: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.3)
    raise AssertionError(f"{url} did not come up")


@pytest.fixture(scope="module")
def servers(parallel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Prefect server, a pool, the deployments and a worker, as the README has them."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    settings = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
    }
    prefect = [str(Path(sys.executable).with_name("prefect"))]
    server = [*prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with background(server, parallel, home / "server.log", **settings):
        until_up(f"http://127.0.0.1:{port}/api/health")
        run([*prefect, "work-pool", "create", "local", "--type", "process"], parallel, **settings)
        run([*prefect, "--no-prompt", "deploy", "--all"], parallel, **settings)
        worker = [*prefect, "worker", "start", "--pool", "local"]
        with background(worker, parallel, home / "worker.log", **settings):
            yield settings


def deployment(name: str, servers: dict[str, str], folder: Path, *words: str) -> None:
    prefect = str(Path(sys.executable).with_name("prefect"))
    run([prefect, "deployment", "run", name, "--watch", *words], folder, **servers)


def outputs(folder: Path) -> dict[str, str]:
    return {
        out["path"]: out["md5"]
        for stage in lock(folder)["stages"].values()
        for out in stage.get("outs", [])
    }


def stamps(folder: Path) -> dict[str, int]:
    files = [p for p in (folder / "out").rglob("*") if p.is_file() and ".local" not in p.parts]
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in files}


def test_a_deleted_arm_alone_is_redone_by_a_deployment(
    parallel: Path, servers: dict[str, str]
) -> None:
    hashes, before = outputs(parallel), stamps(parallel)
    shutil.rmtree(parallel / f"out/dpo/{DPO}")
    # Without DVC's run cache it must be trained again, not fetched.
    shutil.rmtree(parallel / ".dvc/cache/runs", ignore_errors=True)
    deployment("align/local", servers, parallel)
    assert outputs(parallel) == hashes
    after = stamps(parallel)
    redone = {name for name in after if after[name] != before.get(name)}
    assert any(name.startswith(f"out/dpo/{DPO}/") for name in redone)
    others = (f"out/dpo/{DPO}", f"out/samples/{DPO}", f"out/benchmark/{DPO}", "out/compare")
    assert {name for name in redone if not name.startswith(others)} == set()


def test_an_added_beta_adds_its_arm_alone(parallel: Path, servers: dict[str, str]) -> None:
    before = stamps(parallel)
    change(parallel, {"dpo.grid.beta": [0.1, 1.0]})
    deployment("align/local", servers, parallel)
    after = stamps(parallel)
    new = "dpo-b1.0-lr0.0005-s0"
    redone = {name for name in after if after[name] != before.get(name)}
    mine = (f"out/dpo/{new}/", f"out/samples/{new}", f"out/benchmark/{new}")
    mine = (*mine, "out/frontier/", "out/judgements/", "out/overoptimisation/", "out/compare/")
    assert all(any(name.startswith(p) for name in redone) for p in mine)
    folders = ("out", "out/ipo", "out/unlikelihood", "out/unlabelled")
    lists = {f"{folder}/arms.json" for folder in folders}
    assert {n for n in redone if not n.startswith(mine)} == lists
    table = pd.read_csv(parallel / "out/compare/table.csv")
    assert list(dict.fromkeys(table.arm)) == ["sft", DPO, new, PPO]


def test_taking_the_beta_away_takes_its_outputs_away(parallel: Path, serial: Path) -> None:
    """Back to a sweep that was run before: DVC's run cache must not spare the clearing."""
    change(parallel, {"dpo.grid.beta": [0.1]})
    run(ALIGN, parallel)
    assert [p.name for p in (parallel / "out/dpo").iterdir()] == [DPO]
    ours, theirs = lock(parallel)["stages"], lock(serial)["stages"]
    assert {name: ours[name] for name in theirs} == theirs


def test_promotion_by_deployment_gives_back_the_same_model(
    parallel: Path, servers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve prompts show little: whether it was promoted or refused, the version is whole."""
    deployment("promote/local", servers, parallel, "--param", f"arm={DPO}")
    code = f"""
import mlflow, torch
from transformers import AutoModelForCausalLM
mlflow.set_tracking_uri("sqlite:///mlflow.db")
client = mlflow.MlflowClient()
decision = client.get_model_version("betaflow", "1").tags["betaflow.decision"]
aliases = client.get_registered_model("betaflow").aliases
(alias,) = aliases
assert alias == dict(accepted="champion", refused="challenger")[decision]
found = mlflow.transformers.load_model("models:/betaflow/1")
ours = AutoModelForCausalLM.from_pretrained("out/dpo/{DPO}")
ids = found.tokenizer("the plot was", return_tensors="pt").input_ids
with torch.no_grad():
    a, b = (torch.log_softmax(m(ids).logits, -1) for m in (found.model, ours))
assert torch.equal(a, b), float((a - b).abs().max())
print("same")
"""
    assert "same" in run([sys.executable, "-c", code], parallel).stdout


def test_nothing_is_left_running(parallel: Path) -> None:
    here = []
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            if "tasks." in " ".join(process.info["cmdline"] or []) and process.cwd() == str(
                parallel
            ):
                here.append(process.info["cmdline"])
    assert here == []
