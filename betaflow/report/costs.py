"""What an arm costs: its own training, and what the method needs besides data and SFT.

PPO needs a reward model (PPO-GT too: its critic starts from it). DPO, IPO and SLiC need the
reference's log-probabilities of the pairs; online DPO computes those of its own. Best-of-N trains
nothing: it costs n completions for each that is used, a cost of use, which is not counted here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from betaflow.config import STAGES

NEEDS = {"ppo": "reward", "dpo": "reference"}  # by stage of the arm, the stage it needs


def whole(row: Mapping[str, Any], costs: Mapping[str, float]) -> float:
    """The cost of an arm with all that its method needs; NaN where a part is not known.

    Args:
        row: the arm, with `arm` and `method`.
        costs: by arm or stage name, in any one unit (FLOPs, seconds).
    """
    method = row["method"]
    needed = None if method == "online_dpo" else NEEDS.get(STAGES.get(method, method))
    parts = [row["arm"]] if needed is None else [row["arm"], needed]
    return math.fsum(costs.get(name, math.nan) for name in parts)
