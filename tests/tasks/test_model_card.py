"""The model card's numbers."""

from __future__ import annotations

import pytest

from betaflow.config import Arm, Params
from tasks._model_card import limits, results


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


def test_the_limits_tell_the_prompts_that_there_were(params: Params) -> None:
    """`sample.prompts` is the most that may be, and fewer are held out."""
    asked = params.model_copy(update={"sample": params.sample.model_copy(update={"prompts": 9999})})
    rows = [{"temperature": t, "prompts": 137} for t in (0.0, 1.0)]
    told = limits(asked, Arm(method="dpo", beta=0.1, learning_rate=0.001, seed=0), rows)
    assert "measured on 137 held-out prompts" in told
    assert "9999" not in told


@pytest.mark.parametrize(
    ("method", "dpo", "reward"),
    [
        ("dpo", True, False),
        ("ipo", True, False),
        ("unlikelihood", True, False),
        ("online_dpo", False, False),
        ("ppo", False, True),
        ("ppo_gt", False, False),
    ],
)
def test_the_limits_tell_of_early_stopping_on_the_judged_prompts(
    params: Params, method: str, dpo: bool, reward: bool
) -> None:
    """That of the arm's own training, or of its reward model's."""
    arm = Arm.model_construct(method=method)
    rows = [{"temperature": 1.0, "prompts": 160}]

    def told(of_dpo: int | None, of_reward: int | None) -> bool:
        training = params.dpo.training.model_copy(update={"patience": of_dpo})
        scorer = params.reward.model_copy(update={"patience": of_reward})
        trained = params.dpo.model_copy(update={"training": training})
        changed = params.model_copy(update={"dpo": trained, "reward": scorer})
        return "Early stopping" in limits(changed, arm, rows)

    assert (told(3, None), told(None, 3), told(None, None)) == (dpo, reward, False)
