"""The model card's numbers."""

from __future__ import annotations

from betaflow.config import Params
from tasks._model_card import results


def test_every_estimate_has_its_interval(params: Params) -> None:
    row = {
        "arm": "dpo", "temperature": 1.0, "prompts": 160, "samples": 320,
        "win_rate_vs_sft": 0.7, "win_rate_vs_sft_low": 0.65, "win_rate_vs_sft_high": 0.75,
        "lc_win_rate_vs_sft": 0.6, "lc_win_rate_vs_sft_low": 0.52, "lc_win_rate_vs_sft_high": 0.68,
        "quiz/acc": 0.51236, "quiz/acc_stderr": 0.021,
        "quiz/acc_vs_sft": -0.01, "quiz/acc_vs_sft_low": -0.04, "quiz/acc_vs_sft_high": 0.02,
    }  # fmt: skip
    lines = results([row], params).splitlines()
    assert "| T | wins vs SFT, % | wins vs SFT at equal length, % | prompts | samples |" in lines
    assert "| 1 | 70.0 [65.0, 75.0] | 60.0 [52.0, 68.0] | 160 | 320 |" in lines
    assert "| quiz/acc | 0.5124 | 0.021 | -0.0100 [-0.0400, 0.0200] |" in lines
