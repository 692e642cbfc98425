"""A real vLLM server on 127.0.0.1 as the judge's endpoint, with a small model made on the spot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from endpoints import settings
from vllm_server import serve_model

from betaflow.config import ScratchSettings
from betaflow.errors import UserError
from betaflow.evaluation.judges import missing_reasons
from betaflow.evaluation.llm_judge import LLMJudge
from betaflow.policy.loading import save_model
from betaflow.policy.scratch import make_model, train_tokenizer

PAIRS = pd.DataFrame(
    {
        "prompt": ["the film was", "this documentary", "we saw"],
        "completion_a": [" good.", " is fine.", " nothing."],
        "completion_b": [" bad.", " is dull.", " nothing."],
    }
)
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Iterator[str]:
    """The base URL of a server with a random model, whose weights say nothing sensible."""
    folder = tmp_path_factory.mktemp("judge")
    sizes = ScratchSettings(vocabulary=400, hidden=64, layers=1, heads=2, max_positions=2048)
    tokenizer = train_tokenizer(texts, sizes.vocabulary)
    save_model(make_model(sizes, tokenizer, seed=0), tokenizer, folder / "model")
    with serve_model(
        folder / "model", folder / "log", "judge", "--chat-template", TEMPLATE
    ) as address:
        yield f"{address}/v1"


def test_a_real_server_judges(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    gibberish = LLMJudge(settings(url, max_tokens=16), tmp_path)
    verdicts = gibberish(PAIRS)
    # A model that says nothing sensible gives no verdicts: neither ties nor losses.
    assert [math.isnan(one) for one in verdicts["preference"]] == [True, True, False]
    assert sum(missing_reasons(verdicts).values()) == 2
    assert set(missing_reasons(verdicts)) <= {"cut at max_tokens", "empty", "malformed"}
    assert gibberish.usage.answers == 4
    assert gibberish.usage.models == ("judge",)
    assert gibberish.usage.unreported == 0
    assert gibberish.usage.prompt_tokens > 400
    assert 0 < gibberish.usage.completion_tokens <= 4 * 16

    # Held to the format it gives verdicts, which are its own.
    choice = [f"Comparison: one of them.\nMore positive: {letter}" for letter in "AB"]
    held = settings(url, options={"structured_outputs": {"choice": choice}})
    verdicts = LLMJudge(held, tmp_path)(PAIRS)
    assert set(verdicts["missing"]) == {""}
    assert set(verdicts["preference"]) <= {0.0, 0.5, 1.0}
    assert set(verdicts["ab"][:2]) | set(verdicts["ba"][:2]) <= {"a", "b"}
    again = LLMJudge(settings("http://127.0.0.1:9/v1", options=held.options), tmp_path)
    pd.testing.assert_frame_equal(again(PAIRS), verdicts)

    # What the server refuses: the model's name, and a question that does not fit its context.
    with pytest.raises(UserError, match=r"HTTP 404: .*`other`.*compare.llm.model, 'other'"):
        LLMJudge(settings(url, model="other"), tmp_path)(PAIRS)
    longer = PAIRS.assign(prompt=["long " * 2000, "short", "x"])
    verdicts = LLMJudge(held, tmp_path)(longer)
    assert missing_reasons(verdicts) == {"HTTP 400": 1}
