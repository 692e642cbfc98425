"""The alignment tax: what an arm lost against the reference on benchmarks of other abilities.

An arm and the reference answer the same documents, so their difference is judged document by
document. That sees far smaller losses than two standard errors side by side do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import log, sqrt
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from betaflow.evaluation.bootstrap import (
    UNKNOWN,
    Estimate,
    cluster_sums,
    mean_interval,
    percentile_interval,
    resampled_sums,
)
from betaflow.evaluation.paired_tests import (
    clustered_p_value,
    difference_of_shares,
    holm,
    mcnemar,
    student_p_value,
)

Array = NDArray[np.float64]

# What lm-eval makes of a corpus's mean log-likelihood (a document, a word, or a byte), in nats.
OF_MEAN_LOGLIKELIHOOD: dict[str, Callable[[Array], Array]] = {
    "perplexity": lambda mean: np.exp(-mean),
    "word_perplexity": lambda mean: np.exp(-mean),
    "byte_perplexity": lambda mean: np.exp(-mean),
    "bits_per_byte": lambda mean: -mean / log(2),
}


class Documents(TypedDict):
    """One task's results by document, as `harness.run_harness` returns them.

    `hash` is the same for the same documents; `results` has, by metric, what `paired_difference`
    takes, and `clusters`, where documents are of one prompt, a label each.
    """

    hash: str
    results: Mapping[str, ArrayLike]
    clusters: NotRequired[ArrayLike]


class Difference(NamedTuple):
    """The arm less the reference, in the metric's unit; `p_value` is two-sided."""

    difference: Estimate
    p_value: float
    documents: int


class TaskDifference(NamedTuple):
    """`Difference` of one arm, task and metric; `adjusted` is Holm's p-value over all of them."""

    arm: str
    task: str
    metric: str
    difference: Estimate
    p_value: float
    adjusted: float
    documents: int


def paired_difference(
    arm: ArrayLike,
    reference: ArrayLike,
    metric: str,
    clusters: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """How much the arm differs from the reference on the same documents.

    Results of 0 and 1 have Tango's interval and McNemar's mid-p value. Others have the paired
    bootstrap's interval, and the p-value of difference over standard error by Student's t. The
    metrics of `OF_MEAN_LOGLIKELIHOOD` are of whole corpora: their difference is, too, and documents
    are resampled. Where documents come in clusters, clusters are resampled, and shares have
    `difference_of_shares`'s interval and `clustered_p_value`.

    Args:
        arm, reference: (N,) results, document by document in the same order; (N, 2) of
            log-likelihood (nats) and weight (words, bytes, or 1) for a metric of a whole corpus.
        metric: its name, as lm-eval's.
        clusters: (N,) labels, such as prompts; None: every document stands alone.
        resamples, confidence, seed: as in `bootstrap.mean_interval`.

    Returns:
        The difference is NaN without documents, its interval with a single one (of results other
        than 0 and 1) and with a single cluster; so is the p-value.

    Raises:
        ValueError: not as many documents, a result that is not finite, other weights for the
            reference than for the arm, or the shape of another metric.
    """
    a, b = np.asarray(arm, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    whole = OF_MEAN_LOGLIKELIHOOD.get(metric)
    if a.shape != b.shape or a.shape[1:] != (() if whole is None else (2,)):
        raise ValueError(f"not the same documents' {metric}: shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"a document's {metric} is NaN or infinite")
    if whole is None and np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all() and len(a):
        shares = difference_of_shares(a, b, clusters, confidence=confidence)
        p = mcnemar(a, b) if clusters is None else clustered_p_value(a, b, clusters)
        return Difference(shares, p, len(a))
    if whole is None:
        found = mean_interval(
            a - b, clusters, resamples=resamples, confidence=confidence, seed=seed
        )
    else:
        found = _of_corpora(a, b, clusters, whole, resamples, confidence, seed)
    drawn = len(a) if clusters is None else len(np.unique(np.asarray(clusters)))
    return Difference(found, _p_value(found, drawn), len(a))


def no_surer_than_alike(
    difference: Estimate,
    arm: ArrayLike,
    reference: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
) -> Estimate:
    """A difference of results in [0, 1], no surer than if none of so many documents had differed.

    A few documents that are alike leave open how many others would be lost outright, which a
    bootstrap of them does not know. Of other results it is as it was.

    Args:
        difference: of `paired_difference`, whose other arguments these are.
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (arm, reference))
    if not len(a) or min(a.min(), b.min()) < 0 or max(a.max(), b.max()) > 1:
        return difference
    alike = difference_of_shares(
        np.zeros(len(a)), np.zeros(len(a)), clusters, confidence=confidence
    )
    at = difference.estimate
    low, high = min(difference.low, at + alike.low), max(difference.high, at + alike.high)
    return difference._replace(low=low, high=high)


def higher_is_better(directions: Mapping[str, object], metric: str) -> bool | None:
    """Whether a task's metric is better when higher; None where lm-eval does not say.

    Args:
        directions: by metric, as lm-eval gives them: without the filters' names, which results
            have behind the metric's (`exact_match_strict-match`).
    """
    of = [name for name in directions if metric == name or metric.startswith(f"{name}_")]
    found = directions[max(of, key=len)] if of else None
    return found if isinstance(found, bool) else None


def task_differences(
    arms: Mapping[str, Mapping[str, Documents]],
    reference: Mapping[str, Documents],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[TaskDifference]:
    """`paired_difference` of every arm, task and metric, Holm-corrected over them all.

    Args:
        arms: by arm and task, the `documents` of its lm-eval results.
        reference: the same of the reference, such as SFT; what it lacks is left out.
        resamples, confidence, seed: as in `paired_difference`.

    Raises:
        ValueError: an arm was run on other documents than the reference, or as `paired_difference`.
    """
    rows: list[tuple[str, str, str, Difference]] = []
    for arm, tasks in arms.items():
        for task, theirs in ((task, reference[task]) for task in tasks if task in reference):
            ours = tasks[task]
            if ours["hash"] != theirs["hash"]:
                raise ValueError(f"{arm} was run on other documents of {task} than the reference")
            for metric in [name for name in ours["results"] if name in theirs["results"]]:
                found = paired_difference(
                    ours["results"][metric],
                    theirs["results"][metric],
                    metric,
                    ours.get("clusters"),
                    resamples=resamples,
                    confidence=confidence,
                    seed=seed,
                )
                rows.append((arm, task, metric, found))
    adjusted = holm([found.p_value for *_, found in rows])
    return [
        TaskDifference(
            arm, task, metric, found.difference, found.p_value, float(p), found.documents
        )
        for (arm, task, metric, found), p in zip(rows, adjusted, strict=True)
    ]


def alignment_tax(differences: Iterable[Estimate]) -> Estimate:
    """The mean over tasks of what the arm lost: reference less arm, tasks counting equally.

    The tasks are these ones, not a sample of tasks; their documents are independent, and so no two
    tasks may be of the same (`report.tax.taxes` makes one of such). The interval is put together
    from the tasks' own (the MOVER method: Zou and Donner 2008), so that it keeps their skewness:
    with d_j in [l_j, u_j], sum d_j - sqrt(sum (d_j - l_j)^2) is the lower end of a sum, and in the
    same way the upper.

    Args:
        differences: of each task, arm less reference in one unit, such as the share of documents
            right, higher is better; all with one confidence.

    Returns:
        Above 0: a loss. NaN without tasks, or with a NaN among them.
    """
    found = np.array(list(differences), dtype=np.float64).reshape(-1, 4)
    if len(found) == 0:
        return UNKNOWN
    middle, errors, low, high = found.T
    tax, tasks = 0.0 - middle.mean(), len(found)  # no -0.0
    below, above = sqrt(((high - middle) ** 2).sum()), sqrt(((middle - low) ** 2).sum())
    return Estimate(
        float(tax),
        sqrt((errors**2).sum()) / tasks,
        float(tax) - below / tasks,
        float(tax) + above / tasks,
    )


def _of_corpora(
    arm: Array,
    reference: Array,
    clusters: ArrayLike | None,
    whole: Callable[[Array], Array],
    resamples: int,
    confidence: float,
    seed: int,
) -> Estimate:
    if not np.array_equal(arm[:, 1], reference[:, 1]):
        raise ValueError("the documents' words or bytes are not the same on both sides")
    if len(arm) == 0:
        return UNKNOWN
    parts = (arm[:, 0], reference[:, 0], arm[:, 1])
    columns = [cluster_sums(part, clusters)[0] for part in parts]

    def difference(ours: Array, theirs: Array, weight: Array) -> Array:
        return whole(ours / weight) - whole(theirs / weight)

    estimate = float(difference(*(column.sum() for column in columns)))
    count = len(columns[0])
    if count == 1:
        return UNKNOWN._replace(estimate=estimate)
    resampled = difference(*resampled_sums(columns, resamples, seed).T)
    return percentile_interval(estimate, resampled, count, confidence)


def _p_value(found: Estimate, drawn: int) -> float:
    if np.isnan(found.standard_error):
        return float("nan")
    if found.standard_error == 0:  # every document differs by the same
        return 1.0 if found.estimate == 0 else 0.0
    return student_p_value(found.estimate / found.standard_error, drawn - 1)
