"""Win rates, ratings, intervals, power, KL and lm-eval."""

from betaflow.evaluation.alignment_tax import (
    Difference,
    TaskDifference,
    alignment_tax,
    paired_difference,
    task_differences,
)
from betaflow.evaluation.bootstrap import Estimate, mean_interval
from betaflow.evaluation.length_control import length_controlled_win_rate
from betaflow.evaluation.paired_tests import difference_of_shares, holm, mcnemar
from betaflow.evaluation.pairwise import Comparisons, compare_all, pairwise_matrix
from betaflow.evaluation.power import Pilot, detection_power, pilot, prompts_needed
from betaflow.evaluation.ratings import bradley_terry, elo
from betaflow.evaluation.text_quality import TextQuality, distinct_n, repeated_share, text_quality
from betaflow.evaluation.win_rate import paired, preferences, win_rate

__all__ = [
    "Comparisons",
    "Difference",
    "Estimate",
    "Pilot",
    "TaskDifference",
    "TextQuality",
    "alignment_tax",
    "bradley_terry",
    "compare_all",
    "detection_power",
    "difference_of_shares",
    "distinct_n",
    "elo",
    "holm",
    "length_controlled_win_rate",
    "mcnemar",
    "mean_interval",
    "paired",
    "paired_difference",
    "pairwise_matrix",
    "pilot",
    "preferences",
    "prompts_needed",
    "repeated_share",
    "task_differences",
    "text_quality",
    "win_rate",
]
