"""What an arm costs: its own training, and what the method needs besides data and SFT.

PPO needs a reward model (PPO-GT too: its critic starts from it). DPO, IPO and SLiC need the
reference's log-probabilities of the pairs. Best-of-N trains nothing: it costs n completions for
each that is used, a cost of use, which is not counted here.
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
    needed = NEEDS.get(STAGES.get(row["method"], row["method"]))
    parts = [row["arm"]] if needed is None else [row["arm"], needed]
    return math.fsum(costs.get(name, math.nan) for name in parts)
