"""The bootstrap: hand-checked numbers, its rules for NaN, and its coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from simulated import correlated_uniforms, sigmoid

from betaflow.evaluation import (
    bootstrap,
    bradley_terry,
    difference_of_shares,
    length_controlled_win_rate,
)
from betaflow.evaluation.bootstrap import (
    design_effect,
    effective_clusters,
    mean_interval,
    prompt_weights,
    resampled_sums,
    student_quantile,
)


def test_mean_is_over_values_not_over_clusters() -> None:
    found = mean_interval([1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"])
    assert found.estimate == 2.0
    assert found.low <= 2.0 <= found.high


def test_standard_error_is_the_clusters_own() -> None:
    # 100 clusters of two equal values: the error is that of 100 independent values, not of 200.
    values = np.random.default_rng(0).normal(size=100)
    single = mean_interval(values, resamples=20000)
    doubled = mean_interval(np.repeat(values, 2), np.repeat(np.arange(100), 2), resamples=20000)
    assert single.standard_error == pytest.approx(values.std(ddof=1) / 10, rel=0.02)
    assert doubled == pytest.approx(single)


def test_design_effect_by_hand() -> None:
    # Means of clusters 1/2 and 0 around 1/4: (1/2)^2 + (1/2)^2 over 3/4, by 2/1 and 3/4.
    assert design_effect([1, 0, 0, 0], ["a", "a", "b", "b"]) == pytest.approx(0.5 / 0.75 * 1.5)
    assert design_effect([1, 1, 0, 0], ["a", "a", "b", "b"]) == pytest.approx(2 / 1 * 1.5)
    assert design_effect([1, 0, 1, 0], ["a", "a", "b", "b"]) == 1
    assert design_effect([1, 0, 1, 1], None) == 1
    assert design_effect([1, 0, 1, 1], [4, 3, 2, 1]) == pytest.approx(1)
    # Nothing to tell it by: as if clusters were alike within.
    assert design_effect([1, 1, 1, 1], ["a", "a", "a", "b"]) == (9 + 1) / 4
    assert design_effect([1, 0, 1, 0], ["a"] * 4) == 4


def test_same_arguments_same_bits_and_order_of_rows_does_not_matter() -> None:
    random = np.random.default_rng(1)
    values, clusters = random.integers(0, 9, 60).astype(float), random.integers(0, 20, 60)
    order = random.permutation(60)
    assert mean_interval(values, clusters) == mean_interval(values, clusters)
    assert mean_interval(values, clusters) == mean_interval(values[order], clusters[order])
    assert mean_interval(values, clusters) != mean_interval(values, clusters, seed=1)


def test_nan_values_are_left_out_with_clusters_that_hold_nothing_else() -> None:
    clusters = ["a", "a", "b", "c"]
    assert mean_interval([1.0, math.nan, 3.0, math.nan], clusters) == mean_interval(
        [1.0, 3.0], ["a", "b"]
    )


def test_nothing_measured_is_nan_and_one_cluster_has_no_interval() -> None:
    assert all(map(math.isnan, mean_interval([math.nan], ["a"])))
    assert all(map(math.isnan, mean_interval([], [])))
    one = mean_interval([1.0, 2.0], ["a", "a"])
    assert one.estimate == 1.5
    assert all(map(math.isnan, one[1:]))


@pytest.mark.parametrize(
    "values, clusters", [([1.0, math.inf], None), ([1.0, 2.0], ["a"]), ([[1.0]], None)]
)
def test_what_has_no_mean_is_refused(values: list[float], clusters: list[str] | None) -> None:
    with pytest.raises(ValueError):
        mean_interval(values, clusters)


def test_higher_confidence_is_wider() -> None:
    values = np.arange(30.0)
    narrow, wide = (mean_interval(values, confidence=level) for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_weights_and_sums_are_of_the_same_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = list(np.random.default_rng(3).normal(size=(2, 25)))
    found = resampled_sums(columns, 70, seed=4)
    weighted = 25 * prompt_weights(25, 70, seed=4) @ np.transpose(columns)
    np.testing.assert_allclose(found, weighted, atol=1e-12)
    monkeypatch.setattr(bootstrap, "BLOCK", 200)  # eight at a time
    np.testing.assert_array_equal(resampled_sums(columns, 70, seed=4), found)


@pytest.mark.parametrize("freedom, known", [(4, 2.776), (9, 2.262), (30, 2.042), (159, 1.975)])
def test_student_quantile_agrees_with_published_tables(freedom: int, known: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(known, rel=0.01)


@pytest.mark.parametrize("prompts, shape", [(24, "normal"), (160, "normal"), (160, "skewed")])
def test_coverage_of_the_95_percent_interval(prompts: int, shape: str) -> None:
    """1,200 experiments of prompts x 2 correlated draws with a known mean of 1."""
    random = np.random.default_rng(5)
    clusters = np.repeat(np.arange(prompts), 2)
    covered = 0
    for experiment in range(1200):
        if shape == "normal":
            level, noise = random.normal(size=(prompts, 1)), random.normal(size=(prompts, 2))
            values = 1 + level + noise
        else:  # KL-like: positive, skewed
            level = random.gamma(4.0, 0.25, size=(prompts, 1))
            values = level * random.gamma(4.0, 0.25, size=(prompts, 2))
        found = mean_interval(values.ravel(), clusters, resamples=600, seed=experiment)
        covered += found.low <= 1.0 <= found.high
    assert 0.93 <= covered / 1200 <= 0.97


def test_effective_clusters_by_hand() -> None:
    assert effective_clusters([3, 3, 3, 3]) == 4
    assert effective_clusters([40, 1, 1]) == 2  # 42^2 / 1602 is 1.1
    assert effective_clusters([40] * 3 + [1] * 60) == pytest.approx(180**2 / 4860)


@pytest.mark.parametrize("sizes", [[40] + [1] * 120, [1, 2, 4, 8] * 15])
def test_clusters_of_unequal_size_do_not_look_surer_than_they_are(sizes: list[int]) -> None:
    """200 experiments of verdicts correlated by 0.5 within a prompt, of every estimator with
    clusters: means, controlled rates, ratings and differences of shares."""
    random = np.random.default_rng(11)
    prompt = np.repeat(np.arange(len(sizes)), sizes)
    arms = ["a"] * len(prompt), ["b"] * len(prompt)
    covered = np.zeros(4)
    for seed in range(200):
        uniform = correlated_uniforms(random, len(sizes), (max(sizes),), 0.5)
        u = np.concatenate([row[:n] for row, n in zip(uniform, sizes, strict=True)])
        longer = random.normal(0, 1, len(prompt))
        plain = (u < 0.6).astype(float)
        by_length = (u < sigmoid(np.log(1.5) + np.tanh(longer / longer.std()))).astype(float)
        right = (u < 0.3).astype(float), (u > 0.9).astype(float)
        ends = [
            (mean_interval(plain, prompt, resamples=200, seed=seed), 0.6),
            (
                length_controlled_win_rate(
                    by_length, longer, 0 * longer, prompt, resamples=100, seed=seed
                ),
                0.6,
            ),
            (
                bradley_terry(*arms, plain, prompt, anchor="b", resamples=200, seed=seed)["a"],
                np.log(1.5),
            ),
            (difference_of_shares(*right, prompt), 0.2),
        ]
        covered += [found.low <= truth <= found.high for found, truth in ends]
    assert (covered / 200 >= 0.9).all(), covered / 200
