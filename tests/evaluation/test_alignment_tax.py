"""Paired differences on benchmarks: tests, intervals, corrections, the tax, and coverage."""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from simulated import correlated_uniforms

from betaflow.evaluation import (
    Estimate,
    alignment_tax,
    difference_of_shares,
    holm,
    mcnemar,
    mean_interval,
    paired_difference,
    task_differences,
)
from betaflow.evaluation.alignment_tax import (
    OF_MEAN_LOGLIKELIHOOD,
    higher_is_better,
    no_surer_than_alike,
)
from betaflow.evaluation.harness import PERPLEXITY, WHOLE_CORPUS, _tidy
from betaflow.evaluation.paired_tests import clustered_p_value, student_p_value


def results(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """The arm's and the reference's results of 0 and 1."""
    counts = [both, gained, lost, neither]
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


def test_mcnemar_by_hand() -> None:
    # 3 against 1 of 4: P(X <= 1) = 5/16, P(X = 1) = 4/16.
    assert mcnemar(*results(5, 3, 1, 2)) == 6 / 16
    assert mcnemar(*results(5, 1, 3, 2)) == 6 / 16
    assert mcnemar(*results(5, 0, 8, 2)) == 1 / 256
    assert mcnemar(*results(5, 2, 2, 2)) == 1
    assert mcnemar(*results(5, 0, 0, 2)) == 1
    normal = math.erfc(200 / math.sqrt(2000) / math.sqrt(2))  # of many documents
    assert mcnemar(*results(0, 900, 1100, 0)) == pytest.approx(normal, rel=0.02)


def test_mcnemar_s_mid_p_value_keeps_its_level() -> None:
    """Exactly, over all outcomes: 100 documents, a share of which differ, half to either side."""
    for share in (0.1, 0.3, 0.6):
        level = 0.0
        for differ in range(101):
            chance = math.comb(100, differ) * share**differ * (1 - share) ** (100 - differ)
            for gained in range(differ + 1):
                if mid_p(gained, differ - gained) <= 0.05:
                    level += chance * math.comb(differ, gained) / 2**differ
        assert 0.035 < level <= 0.0505


@cache
def mid_p(gained: int, lost: int) -> float:
    return mcnemar(*results(0, gained, lost, 0))


def likeliest_lost(gained: int, lost: int, same: int, difference: float) -> float:
    """The likeliest share of documents lost, given the difference, on a fine grid."""
    low = max(0.0, -difference)
    share = np.linspace(low, (1 - difference) / 2, 200_001)[1:-1]
    value = gained * np.log(share + difference) + lost * np.log(share)
    return float(share[(value + same * np.log(1 - 2 * share - difference)).argmax()])


@pytest.mark.parametrize("gained, lost, same", [(12, 5, 83), (3, 9, 28), (1, 30, 169)])
def test_ends_are_where_tango_s_score_test_turns(gained: int, lost: int, same: int) -> None:
    n = gained + lost + same
    found = difference_of_shares(*results(same, gained, lost, 0))
    assert found.estimate == pytest.approx((gained - lost) / n)
    for end in (found.low, found.high):
        share = likeliest_lost(gained, lost, same, end)
        variance = n * (2 * share + end - end**2)
        assert abs(gained - lost - n * end) / math.sqrt(variance) == pytest.approx(1.96, abs=1e-3)


def test_shares_by_hand_and_at_the_edges() -> None:
    found = difference_of_shares(*results(50, 10, 10, 30))
    assert found.estimate == 0
    assert found.standard_error == pytest.approx(math.sqrt(20) / 100)
    assert found.low == pytest.approx(-found.high)
    same = difference_of_shares(*results(50, 0, 0, 50))  # Wilson's at 0: z^2 / (n + z^2)
    assert same == pytest.approx(
        (0, 0, -(1.96**2) / (100 + 1.96**2), 1.96**2 / (100 + 1.96**2)), 1e-3
    )
    one = difference_of_shares(*results(0, 10, 0, 0))
    assert (one.estimate, one.high) == (1, pytest.approx(1))
    assert difference_of_shares(*results(0, 0, 10, 0)).high == pytest.approx(-one.low)
    assert all(map(math.isnan, difference_of_shares([], [])))


def test_interval_and_mcnemar_agree_on_zero_but_for_border_cases() -> None:
    agreed = []
    for gained, lost in product(range(0, 30, 3), range(0, 30, 3)):
        found = difference_of_shares(*results(100, gained, lost, 0))
        agreed.append((found.low > 0 or found.high < 0) == (mid_p(gained, lost) < 0.05))
    assert np.mean(agreed) > 0.9


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    found = holm([0.6, math.nan, 0.01])
    assert found[[0, 2]] == pytest.approx([0.6, 0.02])
    assert math.isnan(found[1])
    assert holm([0.7, 0.8]).tolist() == [1, 1]
    assert holm([]).tolist() == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([1.2])


@pytest.mark.parametrize(  # from published tables of Student's t
    "ratio, freedom, known",
    [(2.228, 10, 0.05), (3.169, 10, 0.01), (2.042, 30, 0.05), (2.75, 30, 0.01)],
)
def test_student_p_values_agree_with_published_tables(
    ratio: float, freedom: int, known: float
) -> None:
    assert student_p_value(ratio, freedom) == pytest.approx(known, rel=0.01)
    assert student_p_value(-ratio, freedom) == student_p_value(ratio, freedom)


def test_student_p_value_does_not_round_to_zero_soon() -> None:
    assert 0 < student_p_value(20, 250) < 1e-40


def test_results_of_0_and_1_get_tango_and_mcnemar() -> None:
    arm, reference = results(50, 3, 12, 35)
    found = paired_difference(arm, reference, "acc")
    assert found.difference == difference_of_shares(arm, reference)
    assert (found.p_value, found.documents) == (mcnemar(arm, reference), 100)


def test_other_results_get_the_paired_bootstrap() -> None:
    random = np.random.default_rng(0)
    reference = random.random(80)
    arm = reference + random.normal(0.01, 0.02, 80)
    found = paired_difference(arm, reference, "f1")
    assert found.difference == mean_interval(arm - reference)
    ratio = found.difference.estimate / found.difference.standard_error
    assert found.p_value == student_p_value(ratio, 79)
    assert paired_difference(reference, reference, "f1").p_value == 1
    assert math.isnan(paired_difference([0.3], [0.5], "f1").p_value)
    assert math.isnan(paired_difference([], [], "acc").difference.estimate)


def test_few_documents_alike_leave_losses_open() -> None:
    """An interval of no width would rule out any loss on all other documents."""
    same = paired_difference([0.5, 0.4], [0.5, 0.4], "f1").difference
    assert same.low == same.high == 0
    found = no_surer_than_alike(same, [0.5, 0.4], [0.5, 0.4])
    alike = difference_of_shares([0, 0], [0, 0])
    assert (found.low, found.high) == (alike.low, alike.high)
    # Documents of one prompt tell as much as one.
    clustered = no_surer_than_alike(same, [0.5, 0.4] * 4, [0.5, 0.4] * 4, list("aaaabbbb"))
    assert clustered.low <= found.low
    wide = Estimate(0.0, 0.5, -0.9, 0.9)
    assert no_surer_than_alike(wide, [0.5, 0.4], [0.5, 0.4]) == wide
    of_no_bound = Estimate(0.0, 0.0, 0.0, 0.0)
    assert no_surer_than_alike(of_no_bound, [50.0, 40.0], [50.0, 40.0]) == of_no_bound


def test_a_rare_outright_loss_is_seldom_ruled_out() -> None:
    """A loss of 0.105, all of it on 11.7 % of the documents, against a margin of 0.1: at most the
    2.5 % of such experiments that the level allows should rule it out, and a sampling error."""
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        arm, reference = np.full(10, 0.9), np.full(10, 0.9)
        arm[random.random(10) < 0.117] = 0.0
        found = paired_difference(arm, reference, "f1", resamples=200).difference
        wrong += no_surer_than_alike(found, arm, reference).low > -0.1
    assert wrong <= 18


@pytest.mark.parametrize(
    ("metric", "up"),
    [
        ("acc", True), ("acc_norm", False), ("acc_norm_strict", False), ("acc_strict", True),
        ("word_error_strict", False), ("word", None), ("score", None), ("accuracy", None),
    ],
)  # fmt: skip
def test_which_way_is_better_is_the_longest_name_s(metric: str, up: bool | None) -> None:
    directions = {"acc": True, "acc_norm": False, "word_error": False, "score": None}
    assert higher_is_better(directions, metric) is up


def test_perplexities_are_of_the_whole_corpus() -> None:
    reference, arm = [[-20.0, 10], [-90.0, 30]], [[-22.0, 10], [-94.0, 30]]
    found = paired_difference(arm, reference, "word_perplexity").difference
    assert found.estimate == pytest.approx(math.exp(116 / 40) - math.exp(110 / 40))
    bits = paired_difference(arm, reference, "bits_per_byte").difference
    assert bits.estimate == pytest.approx(6 / 40 / math.log(2))
    # The resamples of two documents: either twice, or both. The differences follow.
    ends = [math.exp(2.2) - math.exp(2), math.exp(94 / 30) - math.exp(3)]
    assert (found.low, found.high) == pytest.approx((min(ends), max(ends)))


def test_perplexity_of_targets_is_lm_eval_s_and_lower_where_the_arm_is_surer() -> None:
    from lm_eval.api.metrics import perplexity

    reference, arm = [-2.0, -4.0, -9.0], [-1.5, -3.0, -9.0]
    weighted = [[[value, 1.0] for value in side] for side in (arm, reference)]
    found = paired_difference(*weighted, "perplexity").difference
    assert found.estimate == pytest.approx(perplexity(arm) - perplexity(reference))
    assert found.high <= 0


def test_copies_of_a_document_tell_nothing_more() -> None:
    """Three documents a prompt, all alike, give what the prompts' own give."""
    arm, reference = results(20, 3, 12, 15)
    prompts = np.repeat(np.arange(50), 3)
    copies = np.repeat(arm, 3), np.repeat(reference, 3)
    found = paired_difference(*copies, "acc", prompts)
    once = paired_difference(arm, reference, "acc", np.arange(50))
    assert found.difference == pytest.approx(once.difference, abs=0.005)
    assert found.p_value == pytest.approx(once.p_value, rel=0.05)
    assert (found.documents, once.documents) == (150, 50)
    # Documents of their own have the score test by t instead of the mid-p value by z.
    assert once.difference == pytest.approx(difference_of_shares(arm, reference), abs=0.01)
    assert once.p_value == pytest.approx(mcnemar(arm, reference), abs=0.01)
    assert found.p_value > 2 * paired_difference(*copies, "acc").p_value
    # None differs: a width as of 50 documents, not of 150, nor none.
    same = paired_difference(copies[0], copies[0], "acc", prompts)
    assert same.difference == pytest.approx(
        paired_difference(arm, arm, "acc", np.arange(50)).difference
    )
    assert same.p_value == 1
    alone = paired_difference([1, 0], [0, 0], "acc", [7, 7])
    assert alone.difference.estimate == 0.5
    assert all(map(math.isnan, (*alone.difference[1:], alone.p_value)))


@pytest.mark.parametrize("metric", ["f1", "word_perplexity"])
def test_clusters_are_resampled_whole(metric: str) -> None:
    random = np.random.default_rng(4)
    arm, reference = -1 - random.random((2, 40))
    if metric != "f1":
        words = random.integers(1, 9, 40)
        arm, reference = (np.stack([side * words, words], axis=1) for side in (arm, reference))
    copies = np.repeat(arm, 3, axis=0), np.repeat(reference, 3, axis=0)
    found = paired_difference(*copies, metric, np.repeat(np.arange(40), 3))
    once = paired_difference(arm, reference, metric)
    assert found.difference == pytest.approx(once.difference)
    assert found.p_value == pytest.approx(once.p_value)


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="same documents"):
        paired_difference([1.0], [1.0, 0.0], "acc")
    with pytest.raises(ValueError, match="same documents"):
        paired_difference([1.0], [1.0], "word_perplexity")
    with pytest.raises(ValueError, match="words or bytes"):
        paired_difference([[-3.0, 2]], [[-3.0, 3]], "word_perplexity")
    with pytest.raises(ValueError, match="NaN or infinite"):
        paired_difference([math.nan], [1.0], "acc")
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        mcnemar([0.5], [1.0])


def documents(**scores: list[float]) -> dict[str, dict]:
    return {task: {"hash": task, "results": {"acc": values}} for task, values in scores.items()}


def test_differences_of_all_arms_and_tasks_are_corrected_together() -> None:
    worse, same = results(50, 1, 12, 37), results(50, 5, 5, 40)
    reference = documents(facts=worse[1].tolist(), logic=same[1].tolist())
    arms = {
        "dpo": documents(facts=worse[0].tolist(), logic=same[0].tolist()),
        "sft": documents(facts=worse[1].tolist(), extra=[1.0]),
    }
    rows = task_differences(arms, reference)
    names = [("dpo", "facts", "acc"), ("dpo", "logic", "acc"), ("sft", "facts", "acc")]
    assert [row[:3] for row in rows] == names
    assert rows[0].adjusted == pytest.approx(3 * mcnemar(*worse))
    assert [row.adjusted for row in rows[1:]] == [1, 1]
    other = documents(facts=worse[0].tolist())
    other["facts"]["hash"] = "other"
    with pytest.raises(ValueError, match="dpo was run on other documents of facts"):
        task_differences({"dpo": other}, reference)
    assert task_differences({}, reference) == []
    for one in (reference, arms["dpo"]):
        one["facts"]["clusters"] = [n // 2 for n in range(100)]
    (clustered, *_) = task_differences({"dpo": arms["dpo"]}, reference)
    assert clustered.p_value == clustered_p_value(*worse, reference["facts"]["clusters"])
    assert clustered.p_value > rows[0].p_value


def test_the_harness_keeps_each_document_s_results() -> None:
    """Rows as lm-eval 0.4.13 returns them: one a document and filter, in no fixed order."""

    def row(document: int, name: str, value: object, how: str = "none") -> dict:
        about = {"doc_id": document, "filter": how, "doc": {}, "metrics": [name]}
        hashes = {f"{of}_hash": f"{of}{document}" for of in ("doc", "prompt", "target")}
        return about | hashes | {name: value}

    found = {
        "results": {},
        "n-samples": {},
        "higher_is_better": {},
        "samples": {
            "cloze": [row(1, "acc", 0.0), row(0, "acc", True)],
            "text": [row(0, "word_perplexity", (-3.0, 2)), row(1, "word_perplexity", (-4, 3))],
            "targets": [row(0, "perplexity", -2.5), row(1, "perplexity", np.float64(-4))],
            "sums": [
                row(0, "exact_match", np.float64(1), "strict"),
                row(1, "exact_match", 0, "strict"),
            ],
            "pairs": [row(0, "f1", (1, 0)), row(1, "f1", (0, 0))],  # no result of its own
        },
    }
    tasks = _tidy(found)["documents"]
    assert tasks["cloze"]["results"] == {"acc": [1.0, 0.0]}
    assert tasks["text"]["results"] == {"word_perplexity": [[-3.0, 2.0], [-4.0, 3.0]]}
    assert tasks["targets"]["results"] == {"perplexity": [[-2.5, 1.0], [-4.0, 1.0]]}
    assert tasks["sums"]["results"] == {"exact_match_strict": [1.0, 0.0]}
    assert tasks["pairs"]["results"] == {}
    assert {*WHOLE_CORPUS, PERPLEXITY} == set(OF_MEAN_LOGLIKELIHOOD)
    assert len({task["hash"] for task in tasks.values()}) == 1
    found["samples"]["sums"].append(row(2, "bleu", 0.5))  # not of every document
    assert _tidy(found)["documents"]["sums"]["results"] == {}
    for of in ("doc", "prompt", "target"):  # another question is another document
        found["samples"]["cloze"] = [row(1, "acc", 0.0), row(0, "acc", True)]
        assert _tidy(found)["documents"]["cloze"]["hash"] == tasks["cloze"]["hash"]
        found["samples"]["cloze"][0][f"{of}_hash"] = "other"
        assert _tidy(found)["documents"]["cloze"]["hash"] != tasks["cloze"]["hash"]
    found["samples"]["cloze"].pop()
    assert _tidy(found)["documents"]["cloze"]["hash"] != tasks["cloze"]["hash"]


def test_the_harness_tells_a_metric_s_error_whatever_the_filter() -> None:
    told = {
        "alias": "sums", "sample_len": 3,
        "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,none": 0.4, "f1_stderr,none": "N/A",
        "exact_match,strict": 0.7, "exact_match_stderr,strict": 0.2,
    }  # fmt: skip
    found = {"results": {"sums": told}, "n-samples": {}, "higher_is_better": {}, "samples": {}}
    assert _tidy(found)["results"]["sums"] == {
        "acc": 0.5, "acc_stderr": 0.1, "f1": 0.4,
        "exact_match_strict": 0.7, "exact_match_strict_stderr": 0.2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("prompts", "clusters"),
    [
        (["a", "b", "a", "c"], [0, 1, 0, 2]),
        (["a", "b", "c", "d"], None),
        (["a", "a", "a", "a"], None),  # an instruction
        (["a", "a", None, "b"], None),
    ],
)
def test_the_harness_keeps_which_documents_are_of_one_prompt(
    prompts: list[str | None], clusters: list[int] | None
) -> None:
    rows = [
        {"doc_id": place, "filter": how, "doc": {"prompt": prompt}}
        | {"doc_hash": f"{place}", "prompt_hash": "p", "target_hash": "t"}
        | {"metrics": ["acc"], "acc": 1.0}
        for place, prompt in reversed(list(enumerate(prompts)))
        for how in ("none", "strict")
    ]
    found = {"results": {}, "n-samples": {}, "higher_is_better": {}, "samples": {"pairs": rows}}
    kept = _tidy(found)["documents"]["pairs"]
    assert kept.get("clusters") == clusters
    assert len(kept["results"]["acc"]) == 4


def test_the_tax_is_the_mean_loss() -> None:
    one = Estimate(-0.10, 0.03, -0.16, -0.05)
    other = Estimate(0.02, 0.04, -0.06, 0.10)
    found = alignment_tax([one, other])
    assert found.estimate == pytest.approx(0.04)
    assert found.standard_error == pytest.approx(0.05 / 2)
    assert found.low == pytest.approx(0.04 - math.hypot(0.05, 0.08) / 2)
    assert found.high == pytest.approx(0.04 + math.hypot(0.06, 0.08) / 2)
    assert alignment_tax([one]) == pytest.approx((0.10, 0.03, 0.05, 0.16))
    assert all(map(math.isnan, alignment_tax([])))


@cache
def shares(gained: int, lost: int, size: int) -> Estimate:
    return difference_of_shares(*results(size - gained - lost, gained, lost, 0))


@pytest.mark.parametrize(
    "size, before, after", [(250, 0.5, 0.45), (250, 0.92, 0.9), (60, 0.5, 0.5)]
)
def test_coverage_of_the_interval_of_a_difference_of_shares(
    size: int, before: float, after: float
) -> None:
    """8,000 experiments with a reference and an arm that mostly agree."""
    right = correlated_uniforms(np.random.default_rng(1), 8000 * size, (2,), 0.9)
    right = (right < [after, before]).reshape(8000, size, 2)
    gained = (right[:, :, 0] & ~right[:, :, 1]).sum(axis=1)
    lost = (~right[:, :, 0] & right[:, :, 1]).sum(axis=1)
    found = [shares(g, w, size) for g, w in zip(gained.tolist(), lost.tolist(), strict=True)]
    covered = np.mean([one.low <= after - before <= one.high for one in found])
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize(
    "prompts, pairs, before, after", [(60, 4, 0.6, 0.6), (60, 4, 0.95, 0.93), (250, 2, 0.6, 0.5)]
)
def test_coverage_where_several_documents_are_of_one_prompt(
    prompts: int, pairs: int, before: float, after: float
) -> None:
    """500 experiments: an arm gains or loses whole prompts rather than single pairs of them."""
    random, clusters = np.random.default_rng(6), np.repeat(np.arange(prompts), pairs)
    covered = naive = rejected = 0
    for _ in range(500):
        # Each side's result is of the prompt as much as of the pair, and of both sides alike.
        shared = random.normal(size=(prompts, 1, 1)) + random.normal(size=(prompts, 1, 2))
        mixed = (shared + random.normal(size=(prompts, pairs, 1)) * math.sqrt(2)) / 2
        normal = NormalDist()
        right = mixed < [normal.inv_cdf(after), normal.inv_cdf(before)]
        arm, reference = right.reshape(-1, 2).T.astype(float)
        found = paired_difference(arm, reference, "acc", clusters)
        covered += found.difference.low <= after - before <= found.difference.high
        rejected += found.p_value < 0.05
        alone = difference_of_shares(arm, reference)
        naive += alone.low <= after - before <= alone.high
    assert 0.93 <= covered / 500 <= 0.98
    assert naive / 500 < 0.93
    if before == after:
        assert 0.02 <= rejected / 500 <= 0.07


def test_coverage_of_the_tax() -> None:
    """10,000 experiments with three tasks of 100 documents, hard, easy and easier."""
    random = np.random.default_rng(2)
    tasks = [(0.06, 0.10), (0.04, 0.04), (0.03, 0.06)]  # chances to gain and to lose
    drawn = [random.multinomial(100, [g, w, 1 - g - w], size=10_000) for g, w in tasks]
    truth = float(np.mean([lost - gained for gained, lost in tasks]))
    covered = 0
    for counts in zip(*drawn, strict=True):
        found = alignment_tax(shares(int(g), int(w), 100) for g, w, _ in counts)
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / 10_000 <= 0.97


@pytest.mark.parametrize("metric", ["bits_per_byte", "f1"])
def test_coverage_of_the_paired_bootstrap(metric: str) -> None:
    """2,000 experiments of 60 documents of unequal length that lose 0.05 nats or points each."""
    random = np.random.default_rng(3)
    truth = 0.05 / math.log(2) if metric == "bits_per_byte" else -0.05
    covered = 0
    for experiment in range(2000):
        words = random.integers(5, 61, 60)
        level, lost = 2 + 0.3 * random.normal(size=60), 0.05 + 0.1 * random.normal(size=60)
        arm, reference = -level - lost, -level
        if metric == "bits_per_byte":
            arm = np.stack([words * arm, words], axis=1)
            reference = np.stack([words * reference, words], axis=1)
        found = paired_difference(arm, reference, metric, resamples=400, seed=experiment).difference
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / 2000 <= 0.97
