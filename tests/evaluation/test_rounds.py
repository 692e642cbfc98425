"""The preference task's documents: as many prompts as its limit allows."""

from __future__ import annotations

from datasets import Dataset

from betaflow.evaluation.lm_eval_tasks.rounds import in_rounds


def test_a_pair_of_each_prompt_comes_before_another() -> None:
    rows = [{"prompt": prompt, "id": n} for n, prompt in enumerate("aaabbc")]
    found = in_rounds(Dataset.from_list(rows))
    assert found["id"] == [0, 3, 5, 1, 4, 2]
    assert found[:3]["prompt"] == ["a", "b", "c"]
