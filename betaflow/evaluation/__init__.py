"""Win rates, intervals, KL and lm-eval."""

from betaflow.evaluation.bootstrap import Estimate, mean_interval
from betaflow.evaluation.win_rate import paired_scores, preferences, win_rate

__all__ = ["Estimate", "mean_interval", "paired_scores", "preferences", "win_rate"]
