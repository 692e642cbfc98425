"""Win rates, ratings, intervals, power, KL and lm-eval."""

from betaflow.evaluation.bootstrap import Estimate, mean_interval
from betaflow.evaluation.pairwise import Comparisons, compare_all, pairwise_matrix
from betaflow.evaluation.ratings import bradley_terry, elo
from betaflow.evaluation.win_rate import paired_scores, preferences, win_rate

__all__ = [
    "Comparisons",
    "Estimate",
    "bradley_terry",
    "compare_all",
    "elo",
    "mean_interval",
    "paired_scores",
    "pairwise_matrix",
    "preferences",
    "win_rate",
]
