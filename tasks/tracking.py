"""MLflow: a run for each arm under its sweep's run.

A run is known by the fingerprint of its inputs, kept as a tag: doing a stage again updates its
run. The files under `out/` are the source of truth; when the tracking server is away, training
goes on with a warning and `compare` fills the runs in later. A step's metrics are stamped with
the run's start plus the step in milliseconds, so that logging them twice changes nothing.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from betaflow.config import Arm, Params, UnlabelledArm
from betaflow.errors import UserError
from betaflow.io import LOCAL, parse_yaml
from tasks._inputs import fingerprint, without_neutral

FLUSH_SECONDS = 5.0
DVC_WAIT = 20.0  # seconds
TAG = "betaflow."
# The modules that SQLAlchemy imports for an address of PostgreSQL, MySQL or SQL Server.
DRIVERS = {"psycopg", "psycopg2", "MySQLdb", "pymysql", "pymssql", "pyodbc"}


def uri() -> str:
    """The tracking server: `MLFLOW_TRACKING_URI`, or a SQLite file in the workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_uri()


def _own_uri() -> str:
    return f"sqlite:///{Path('mlflow.db').resolve()}"


def server() -> str | None:
    """Where the user keeps the runs, without secrets; None: in the workspace."""
    named = uri()  # MLflow puts the workspace's into the environment too
    return None if named == _own_uri() else _without_secrets(named)


def client() -> Any:
    """An MLflow client; telemetry off, no long waits for a server that is down."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import logging

    import mlflow

    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)

    mlflow.set_tracking_uri(uri())
    return mlflow.MlflowClient()


@contextmanager
def _locked() -> Iterator[None]:
    """One process at a time: creating the schema, an experiment or a run must not race."""
    LOCAL.mkdir(parents=True, exist_ok=True)
    with open(LOCAL / "mlflow.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Tracker:
    """Creates and updates the sweep's runs."""

    def __init__(self, params: Params) -> None:
        self.params = params
        sections = {
            name: getattr(params, name).model_dump() for name in ("data", "model", "sft", "pairs")
        }
        self.sweep = fingerprint(["out/data"], sections)
        with _locked():
            self.client = client()
            self.experiment = self._experiment(params.run.experiment)
            self.sweep_run = self._run(
                f"sweep-{self.sweep[:8]}", self.sweep, {TAG + "method": "sweep"}
            )

    @cached_property
    def hashes(self) -> dict[str, str]:
        """What `dvc_hashes` finds, read once for all runs that are described."""
        return dvc_hashes()

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return str(self.client.create_experiment(name, artifact_location=_artifacts()))
        return str(found.experiment_id)

    def _run(self, name: str, identity: str, tags: Mapping[str, str]) -> Any:
        query = f"tags.`{TAG}fingerprint` = '{identity}'"
        found = self.client.search_runs([self.experiment], query, max_results=1)
        if found:
            return found[0]
        every = {TAG + "fingerprint": identity, TAG + "sweep": self.sweep, **git_tags(), **tags}
        return self.client.create_run(self.experiment, tags=every, run_name=name)

    def arm_run(self, about: Mapping[str, Any]) -> Any:
        """The run of an arm, made if there is none; `about` is its `summary.json`."""
        tags = {
            "mlflow.parentRunId": self.sweep_run.info.run_id,
            TAG + "arm": about["arm"],
            TAG + "method": about["method"],
        }
        with _locked():
            run = self._run(about["arm"], about["fingerprint"], tags)
            if run.data.tags.get("mlflow.parentRunId") != tags["mlflow.parentRunId"]:
                # The same arm in a sweep with other settings upstream: it moves over.
                for key in ("mlflow.parentRunId", TAG + "sweep"):
                    value = tags.get(key, self.sweep)
                    self.client.set_tag(run.info.run_id, key, value)
            return run

    def stamp(self, run: Any) -> None:
        """Put the present commit on a run: what it shows is made now, whenever it was begun."""
        for name, value in git_tags().items():
            self.client.set_tag(run.info.run_id, name, value)

    def describe(self, run: Any, about: Mapping[str, Any]) -> None:
        """Log an arm's parameters, its data (`mlflow.data`) and the DVC hashes of its inputs."""
        from mlflow.entities import Param, RunTag

        names = dict.fromkeys([*Arm.model_fields, *UnlabelledArm.model_fields])
        values = {name: about[name] for name in names if about.get(name) is not None}
        values |= flatten(without_neutral(about["settings"]))  # MLflow keeps a run's first
        self.client.log_batch(
            run.info.run_id,
            params=[Param(key, str(value)) for key, value in values.items()],
            tags=[RunTag(f"dvc.{path}", md5) for path, md5 in self.hashes.items()],
        )
        self.client.log_inputs(run.info.run_id, [_dataset(about["method"], self.hashes)])

    def log_steps(self, run: Any, rows: list[dict[str, Any]]) -> None:
        """Log metrics rows; logging a row twice changes nothing."""
        from mlflow.entities import Metric

        start = run.info.start_time
        metrics = [
            Metric(key, float(value), start + row["step"], row["step"])
            for row in rows
            for key, value in row.items()
            if key != "step"
        ]
        for first in range(0, len(metrics), 1000):
            self.client.log_batch(run.info.run_id, metrics=metrics[first : first + 1000])

    def log_final(self, run: Any, values: Mapping[str, float], steps: int) -> None:
        """Log figures of a run that took so many steps; the latest call's are the ones shown.

        They stand after the last step, where evaluations during training don't hide them.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        finite = {k: float(v) for k, v in values.items() if v is not None and v == v}
        self.client.log_batch(
            run.info.run_id, metrics=[Metric(k, v, now, steps) for k, v in finite.items()]
        )

    def log_compared(
        self, run: Any, own: Mapping[str, float], compared: Mapping[str, float], steps: int
    ) -> None:
        """Log a run's own figures and the comparison's, as `log_final`.

        What an earlier comparison logged and this one has no more is shown as not a number: MLflow
        can't take a metric back. A tag keeps the names.
        """
        from mlflow.entities import Metric

        tag, now, shown = TAG + "compared", int(time.time() * 1000), {**own, **compared}
        before = run.data.tags.get(tag, "").split()
        gone = [Metric(name, math.nan, now, steps) for name in before if name not in shown]
        if gone:
            self.client.log_batch(run.info.run_id, metrics=gone)
        self.log_final(run, shown, steps)
        self.client.set_tag(run.info.run_id, tag, " ".join(sorted(compared)))

    def external_model(self, run: Any, about: Mapping[str, Any], folder: Path) -> None:
        """Point a logged model at the arm's DVC output; its weights are copied at promotion."""
        from mlflow.entities import LoggedModelStatus

        name = "".join("_" if c in "./:%" else c for c in about["arm"])
        query = f"source_run_id = '{run.info.run_id}'"
        if self.client.search_logged_models([self.experiment], filter_string=query, max_results=1):
            return
        model = self.client.create_logged_model(
            self.experiment,
            name,
            run.info.run_id,
            tags={TAG + "path": str(folder), TAG + "fingerprint": about["fingerprint"]},
            model_type="external",
        )
        self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def summary_without_model(arm: Arm) -> dict[str, Any]:
    """What stands for the summary of an arm that nothing trained: it is known by its samples."""
    point = arm.model_dump()
    identity = fingerprint([f"out/samples/{arm.name}.parquet"], point)
    return {"arm": arm.name, **point, "fingerprint": identity, "settings": {}, "metrics": {}}


def _artifacts() -> str | None:
    # A server has its own store; the embedded default keeps artifacts in the workspace.
    return Path("mlartifacts").resolve().as_uri() if uri().startswith("sqlite") else None


def git_tags() -> dict[str, str]:
    """The commit that the workspace is at, and whether tracked files differ from it.

    But for dvc.lock, which every stage writes.
    """

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
        except FileNotFoundError:  # no git here
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    if not commit:
        return {}
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock")
    return {"mlflow.source.git.commit": commit, "git.dirty": str(bool(changed)).lower()}


def dvc_hashes() -> dict[str, str]:
    """DVC's hash of every output that dvc.lock holds, of the stages that arms share."""
    stages, shared = locked_stages(), ("prepare", "sft", "pairs", "reference", "reward")
    return output_hashes({name: stage for name, stage in stages.items() if name in shared})


def output_hashes(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """DVC's hash of every output of `locked_stages`, by path."""
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}


def locked_stages() -> dict[str, dict[str, Any]]:
    """The stages of dvc.lock by name; none where there is no such file, or it is damaged."""
    try:
        lock = parse_yaml(dvc_lock()) or {}
    except yaml.YAMLError:
        return {}
    found: dict[str, dict[str, Any]] = lock.get("stages", {})
    return found


def dvc_lock() -> bytes:
    """dvc.lock as DVC leaves it; empty where there is none.

    DVC writes it in place whenever a stage ends. It holds its own lock then, as it does not while
    a stage's command runs. One that holds it for longer than `DVC_WAIT` seconds is not waited for.
    """
    with ExitStack() as stack:
        with suppress(FileNotFoundError):
            _share(stack.enter_context(open(".dvc/tmp/lock", "rb")))
        with suppress(FileNotFoundError):
            return Path("dvc.lock").read_bytes()
    return b""


def _share(file: BinaryIO) -> None:
    """Lock a file against writers until it is closed; go without after `DVC_WAIT` seconds."""
    until = time.monotonic() + DVC_WAIT
    while time.monotonic() < until:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return


# Methods that learn from, or choose among draws for, texts and prompts: not from given pairs.
OF_PROMPTS = ("sft", "best_of_n", "online_dpo", "ppo", "ppo_gt")


def _dataset(method: str, hashes: Mapping[str, str]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    path = "out/data" if method in OF_PROMPTS else "out/pairs"
    digest = hashes.get(path, "unknown").removesuffix(".dir")
    dataset = Dataset(path, digest, source_type="local", source=json.dumps({"uri": path}))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


class StepLog:
    """Sends a training run's metrics to MLflow in batches; never stops the training."""

    def __init__(self) -> None:
        self.tracker: Tracker | None = None
        self.run: Any = None
        self.buffer: list[dict[str, Any]] = []
        self.sent = 0
        self.flushed = time.monotonic()

    def step(self, row: dict[str, Any]) -> None:
        """Take a metrics row."""
        self.buffer.append(row)
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self._flush()

    def finish(self, figures: Mapping[str, float], steps: int) -> None:
        """Send what is left, and the final figures of a run of so many steps."""
        self._flush()

        def end(tracker: Tracker) -> None:
            tracker.log_final(self.run, figures, steps)
            tracker.client.set_tag(self.run.info.run_id, TAG + "steps_logged", str(self.sent))
            tracker.client.set_terminated(self.run.info.run_id, "FINISHED")

        self._try(end)

    def _flush(self) -> None:
        rows, self.buffer, self.flushed = self.buffer, [], time.monotonic()
        if self._try(lambda tracker: tracker.log_steps(self.run, rows)):
            self.sent += len(rows)

    def _try(self, action: Any) -> bool:
        if self.tracker is None:
            return False
        try:
            action(self.tracker)
        except Exception as error:  # the tracking server's faults are many; training must go on
            warn(error)
            self.tracker = None
            return False
        return True


def warn(error: Exception) -> None:
    """Say once that tracking is off for this stage."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    first = _without_secrets(first)[:200]
    tell(
        f"MLflow at {uri()} can't be used ({first}); going on without. "
        "`compare` fills the runs in from the files in out/; when it has run, `make track` does."
    )


def tell(what: str) -> None:
    """Warn of what MLflow failed at and what does not stop."""
    print(f"warning: {_without_secrets(what)}", file=sys.stderr, flush=True)


@contextmanager
def reachable() -> Iterator[None]:
    """Say what MLflow could not do as a `UserError`, where nothing can be done without it."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name not in DRIVERS:
            raise
        text = f"MLflow at {uri()}: {str(error).strip() or type(error).__name__}"
        raise UserError(_without_secrets(text)) from None  # Prefect logs causes, with the address


def _without_secrets(text: str) -> str:
    """Cut user names and passwords out of addresses; a password may hold `/` and `@`."""
    plain = re.sub(r"(?i)\b(\w*(?:pass|pwd|secret|token|key)\w*=)[^&\s]*", r"\1…", text)
    return re.sub(r"//\S*@", "//…@", plain)


@contextmanager
def training_run(params: Params, about: Mapping[str, Any]) -> Iterator[StepLog]:
    """A `StepLog` on the run of the arm that `about` describes."""
    log = StepLog()
    try:
        tracker = Tracker(params)
        log.run = tracker.arm_run(about)
        tracker.client.update_run(log.run.info.run_id, status="RUNNING")
        tracker.stamp(log.run)
        tracker.describe(log.run, about)
        log.tracker = tracker
    except Exception as error:  # see StepLog._try
        warn(error)
    try:
        yield log
    except BaseException:
        log._flush()
        log._try(lambda t: t.client.set_terminated(log.run.info.run_id, "KILLED"))
        raise
