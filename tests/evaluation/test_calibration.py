"""A reward model's held-out figures."""

from __future__ import annotations

import numpy as np
import pytest
from simulated import verdicts

from betaflow.evaluation.calibration import BINS, calibration


def test_by_hand() -> None:
    found = calibration([2.0, -1.0, 0.0, 3.0])
    assert found["pairs"] == 4
    assert found["accuracy"] == pytest.approx(2.5 / 4)
    # Wilson's: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.95996.
    assert (found["low"], found["high"]) == pytest.approx((0.219427, 0.908101), abs=1e-6)
    losses = [np.log1p(np.exp(-m)) for m in (2.0, -1.0, 0.0, 3.0)]
    assert found["loss"] == pytest.approx(np.mean(losses))
    # One pair a bin, by rising confidence: |0|, |-1|, |2|, |3|.
    assert [b["accuracy"] for b in found["bins"]] == [0.5, 0.0, 1.0, 1.0]
    sure = [0.5, 0.731059, 0.880797, 0.952574]
    assert [b["confidence"] for b in found["bins"]] == pytest.approx(sure, abs=1e-6)
    gaps = [0.0, 0.731059, 0.119203, 0.047426]
    assert found["expected_calibration_error"] == pytest.approx(np.mean(gaps), abs=1e-6)
    histogram = found["histogram"]
    assert sum(histogram["counts"]) == 4
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert (histogram["edges"][0], histogram["edges"][-1]) == (-1.0, 3.0)


def test_coverage_of_the_accuracy_s_interval() -> None:
    """Three pairs a prompt, alike; `benchmarks/coverage.py` has more settings."""
    random, share, covered = np.random.default_rng(0), 0.75, 0
    prompt = np.repeat(np.arange(160), 3)
    for _ in range(1000):
        right = verdicts(random, np.full((160, 3), share), 0.3).ravel()
        found = calibration(2 * right - 1, prompt)
        covered += found["low"] <= share <= found["high"]
    assert 0.93 <= covered / 1000 <= 0.97


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_labels_drawn_from_the_model_s_own_margins_are_calibrated(temperature: float) -> None:
    """And margins three times too large are seen to be."""
    random = np.random.default_rng(0)
    gaps = random.normal(0, 1.5, 20_000)
    chosen = np.where(random.random(20_000) < 1 / (1 + np.exp(-gaps)), gaps, -gaps)
    found = calibration(temperature * chosen)
    inside = [b["low"] <= b["confidence"] <= b["high"] for b in found["bins"]]
    if temperature == 1.0:
        assert sum(inside) >= BINS - 1
        assert found["expected_calibration_error"] < 0.015
    else:
        assert sum(inside) <= 1
        assert found["expected_calibration_error"] > 0.1


def test_pairs_of_one_prompt_are_one_cluster() -> None:
    """Copies of a pair leave the figures and, but for few clusters, the intervals as they are."""
    margins = np.random.default_rng(1).normal(0.5, 1.0, 400)
    once = calibration(margins)
    prompts = np.repeat(np.arange(400), 3)
    found = calibration(np.repeat(margins, 3), prompts)
    assert found["pairs"] == 1200
    assert found["accuracy"] == pytest.approx(once["accuracy"])
    assert (found["low"], found["high"]) == pytest.approx((once["low"], once["high"]), abs=1e-3)
    for clustered, own in zip(found["bins"], once["bins"], strict=True):
        assert clustered["low"] == pytest.approx(own["low"], abs=0.01)
    assert calibration(np.repeat(margins, 3))["low"] > found["low"] + 0.01
    assert calibration(margins, np.arange(400))["low"] == pytest.approx(once["low"])


@pytest.mark.parametrize("margins", [[], [1.0, float("nan")], [[1.0]]])
def test_what_has_no_answer_is_refused(margins: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        calibration(margins)
