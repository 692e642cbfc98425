"""What an arm costs: its own training, and what the method needs besides data and SFT.

PPO needs a reward model (PPO-GT too: its critic starts from it). DPO, IPO and SLiC need the
reference's log-probabilities of the pairs; online DPO computes those of its own. Best-of-N trains
nothing: it costs n completions for each that is used, a cost of use, which is not counted here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from betaflow.config import Method, PPOMethod

# By method, the stage that an arm needs besides `sft` and those of the data.
NEEDS: dict[Method, str] = {
    **dict.fromkeys(get_args(PPOMethod), "reward"),
    **dict.fromkeys(("dpo", "ipo", "slic"), "reference"),
}


def whole(row: Mapping[str, Any], costs: Mapping[str, float]) -> float:
    """The cost of an arm with all that its method needs; NaN where a part is not known.

    Args:
        row: the arm, with `arm` and `method`.
        costs: by arm or stage name, in any one unit (tokens, FLOPs, seconds).
    """
    needed = NEEDS.get(row["method"])
    parts = [row["arm"]] if needed is None else [row["arm"], needed]
    return math.fsum(costs.get(name, math.nan) for name in parts)
