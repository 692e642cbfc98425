"""Workspaces: one that stages which train on pairs can run in, one whose arms can be promoted."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from preferences import sequences
from promotions import make_sweep

from betaflow.config import Params
from betaflow.data.tokenise import Limits
from betaflow.io import write_jsonl
from betaflow.policy.loading import load_policy, load_tokenizer
from betaflow.policy.packing import all_sequences
from betaflow.policy.scorer import Scorer
from tasks import tracking
from tasks._inputs import encode_pairs

LIMITS = Limits("drop", 64, 96)


@pytest.fixture
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training runs that tell no MLflow of their steps."""
    monkeypatch.setattr(tracking, "training_run", lambda *_: nullcontext(tracking.StepLog()))


@pytest.fixture
def workspace(tiny: Path, repository: Path, tmp_path: Path) -> Path:
    """What the stage reads: a model, 40 pairs with their reference, code, params."""
    for name in ("betaflow", "tasks", "dvc.yaml"):
        (tmp_path / name).symlink_to(repository / name)
    shutil.copytree(tiny, tmp_path / "out/sft")
    write_jsonl(tmp_path / "out/data/prompts_eval.jsonl", [])  # of the curve, which is off
    tokenizer = load_tokenizer(tiny)
    for name, first in (("train", 60), ("unlabelled", 70)):
        prompts = [
            {"id": f"{name}-{n}", "prompt": tokenizer.decode([first + n, 80])} for n in range(3)
        ]
        write_jsonl(tmp_path / f"out/data/prompts_{name}.jsonl", prompts)
    scorer = Scorer(load_policy(tiny), tokenizer.pad_token_id)
    for split, count in (("train", 40), ("eval", 10)):
        rows = []
        for n, sides in enumerate(
            zip(sequences(count, True), sequences(count, False), strict=True)
        ):
            texts = [tokenizer.decode(s.completion[:-1]) for s in sides]
            rows.append(
                {"id": f"{split}-{n}", "prompt": tokenizer.decode(sides[0].prompt[1:]),
                 "chosen": texts[0], "rejected": texts[1],
                 "chosen_finished": True, "rejected_finished": n % 3 > 0}
            )  # fmt: skip
        (tmp_path / "out/pairs").mkdir(exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"out/pairs/{split}.jsonl").write_text(lines)
        table: dict[str, Any] = {"id": [row["id"] for row in rows]}
        for side, found in zip(
            ("chosen", "rejected"), encode_pairs(tokenizer, rows, LIMITS), strict=True
        ):
            logps = all_sequences(scorer, found, budget=500, precision="float32")
            table[f"{side}_logps"] = logps.tolist()
            table[f"{side}_tokens"] = [len(s.completion) for s in found]
        (tmp_path / "out/reference").mkdir(exist_ok=True)
        pd.DataFrame(table).to_parquet(tmp_path / f"out/reference/{split}.parquet")
    return tmp_path


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: its schema takes seconds to make."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = tmp_path_factory.mktemp("database")
    SqlAlchemyStore(f"sqlite:///{folder}/mlflow.db", str(folder))
    return folder / "mlflow.db"


@pytest.fixture
def sweep(
    database: Path,
    tiny: Path,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Params:
    """The workspace of a made-up finished sweep, with an MLflow of its own; we are in it."""
    monkeypatch.chdir(tmp_path)
    # Set, and so unset in the end: MLflow itself puts it into the environment.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    shutil.copy(database, "mlflow.db")
    return make_sweep(tmp_path, tiny, repository)
