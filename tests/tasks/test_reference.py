"""The stage `reference`: what its pass cost is counted as a trainer's tokens are."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

import tasks.reference
from betaflow.config import load_params
from betaflow.data.tokenise import Limits
from betaflow.io import read_jsonl
from betaflow.policy.flops import forward_flops
from betaflow.policy.loading import load_policy, load_tokenizer
from tasks._inputs import encode_pairs


def test_the_summary_counts_each_completion_of_the_training_pairs_once(
    workspace: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    shutil.copy(repository / "params.yaml", "params.yaml")
    before = pd.read_parquet("out/reference/train.parquet")
    tasks.reference.main()
    after = pd.read_parquet("out/reference/train.parquet")
    pd.testing.assert_frame_equal(after, before, rtol=1e-4)
    limits = Limits.of(load_params().pairs)
    sides = encode_pairs(load_tokenizer("out/sft"), read_jsonl("out/pairs/train.jsonl"), limits)
    distinct = {(*s.prompt, None, *s.completion): s for side in sides for s in side}
    assert len(distinct) < sum(map(len, sides))  # so counting by pairs would be found out
    tokens = sum(s.length for s in distinct.values())
    found = json.loads(Path("out/reference/summary.json").read_text())
    # Packed, a prompt is computed once for up to eight of its completions.
    each = Counter(tuple(s.prompt) for s in distinct.values())
    shared = sum(len(prompt) * (count - math.ceil(count / 8)) for prompt, count in each.items())
    assert shared > 0
    flops = (tokens - shared) * forward_flops(load_policy("out/sft"))
    assert found == {"train_tokens": tokens, "train_flops": flops}
    assert json.loads(Path("out/.local/timings/reference.json").read_text())["train_seconds"] > 0
