"""Means over draws with less of the draws' luck: a control variate that is known exactly.

Of a completion drawn from pi, log pi/pi_ref and the sum of the exact next-token KLs at its states
have one mean, prompt by prompt: given what came before, a token's log-ratio is that state's KL on
average. So their difference is luck alone. A reward that pi was trained on goes with
log pi/pi_ref, hence with the luck: what a regression explains by it is noise and can be taken out
(Owen, "Monte Carlo theory, methods and examples", section 8.9).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from betaflow.evaluation.optimum import Array

FEWEST = 30  # draws beyond one a group; a slope of fewer may add more noise than it takes out


def without_luck(values: ArrayLike, luck: ArrayLike, groups: ArrayLike) -> Array:
    """Values less what their luck explains: the same mean but for O(1 / draws), with less noise.

    Args:
        values: (N,) of a draw each, such as its reward.
        luck: (N,) log pi/pi_ref less the summed KL of each draw, nats. Where any is NaN (samples
            that no policy drew), or any value is, the values are returned as they are.
        groups: (N,) a label for each policy and prompt. The slope is one for all, of what values
            and luck differ by within a group.

    Returns:
        (N,) the values, unchanged where there are fewer than `FEWEST` draws to tell the slope.
    """
    value, chance = np.asarray(values, dtype=np.float64), np.asarray(luck, dtype=np.float64)
    if np.isnan(chance).any() or np.isnan(value).any():
        return value
    table = pd.DataFrame({"value": value, "luck": chance})
    by = table.groupby(np.asarray(groups))
    within = table - by.transform("mean")
    squares = float((within["luck"] ** 2).sum())
    if len(table) - by.ngroups < FEWEST or squares == 0:
        return value
    return value - float((within["value"] * within["luck"]).sum()) / squares * chance
