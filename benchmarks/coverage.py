"""How often the 95 % intervals of betaflow.evaluation hold the truth, over simulated experiments.

    PYTHONPATH=. .venv/bin/python benchmarks/coverage.py [--experiments 2000] [--only ratings]

Every row is a setting with a known truth. `covered` should be 0.95; with 2,000 experiments it has
a standard error of 0.005. `below` is the share of intervals that lie wholly below the truth,
`above` of those wholly above it; `width` is the mean width.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "evaluation"))
from simulated import LABELS, correlated_uniforms, judged_by_length, labelled, sigmoid, verdicts

from betaflow.evaluation import (
    Comparisons,
    Estimate,
    alignment_tax,
    bradley_terry,
    difference_of_shares,
    length_controlled_win_rate,
    mean_interval,
    paired_difference,
    pairwise_matrix,
    repeated_share,
    win_rate,
)
from betaflow.evaluation.calibration import calibration

RESAMPLES = 400
# A setting's name, its truth, and what draws an experiment and estimates the truth from it.
Setting = tuple[str, float, Callable[[np.random.Generator, int], Estimate]]


def win_rates() -> Iterator[Setting]:
    alike = [*product((24, 160, 1000), (1, 2), (0.5, 0.8, 0.97), (0.3,))]
    many = [*product((20,), (40,), (0.5, 0.8), (0.0, 0.3))]
    for prompts, completions, rate, correlation in alike + many:

        def one(random, seed, size=(prompts, completions), rate=rate, correlation=correlation):
            won = verdicts(random, np.full(size, rate), correlation)
            prompt = np.repeat(np.arange(size[0]), size[1])
            return win_rate(won.ravel(), prompt, resamples=RESAMPLES, seed=seed)

        name = f"{prompts} prompts x {completions}, rate {rate}"
        yield f"win_rate: {name}{'' if correlation else ', independent'}", rate, one
    for (name, labels), prompts, completions in product(LABELS.items(), (24, 50, 160), (1, 2)):

        def one_soft(random, seed, size=(prompts, completions), labels=labels):
            prompt = np.repeat(np.arange(size[0]), size[1])
            won = labelled(random, *size, *labels).ravel()
            return win_rate(won, prompt, resamples=RESAMPLES, seed=seed)

        truth = float(np.dot(*labels))
        yield f"win_rate: {prompts} prompts x {completions}, {name}", truth, one_soft


def length_controlled() -> Iterator[Setting]:
    sizes, rates = ((50, 2), (160, 1), (160, 2)), (0.5, 0.8, 0.95)
    for (prompts, completions), rate in product(sizes, rates):
        for bias, shift in ((0, 0), (1.5, 0), (1.5, 1), (1.5, -1), (1.5, 2), (1.5, -2), (0, 2)):

            def one(random, seed, args=(prompts, completions, rate, bias, shift)):
                won, longer, prompt = judged_by_length(random, *args)
                return length_controlled_win_rate(
                    won, longer, 0 * longer, prompt, resamples=RESAMPLES, seed=seed
                )

            name = f"{prompts} prompts x {completions}, rate {rate}, bias {bias}, shift {shift}"
            yield f"length_controlled_win_rate: {name}", rate, one
    for (name, labels), prompts in product(LABELS.items(), (50, 160)):

        def one_soft(random, seed, prompts=prompts, labels=labels):
            won, longer = labelled(random, prompts, 1, *labels).ravel(), random.normal(size=prompts)
            return length_controlled_win_rate(
                won, longer, 0 * longer, resamples=RESAMPLES, seed=seed
            )

        truth = float(np.dot(*labels))
        yield f"length_controlled_win_rate: {prompts} prompts x 1, {name}", truth, one_soft


def compared(random: np.random.Generator, prompts: int, ratings: list[float]) -> Comparisons:
    """All arms against all on each prompt, alike within a prompt."""
    arms = len(ratings)
    first, second = np.triu_indices(arms, 1)
    chances = sigmoid(np.array(ratings)[first] - np.array(ratings)[second])
    won = verdicts(random, np.tile(chances, (prompts, 1)), 0.3)
    names = np.array([f"arm{number}" for number in range(arms)])
    return Comparisons(
        np.tile(names[first], prompts),
        np.tile(names[second], prompts),
        won.ravel(),
        np.repeat(np.arange(prompts), len(first)),
    )


def ratings() -> Iterator[Setting]:
    for prompts, true in product(
        (40, 160), ([0.0, 0.5], [0.0, 3.0], [0.0, 0.5, 1.0, 2.0], [0.0, 1.0, 3.0, 6.0])
    ):
        for arm in range(1, len(true)):

            def one(random, seed, prompts=prompts, true=true, arm=arm):
                found = bradley_terry(
                    *compared(random, prompts, true), anchor="arm0", resamples=RESAMPLES, seed=seed
                )
                return found[f"arm{arm}"]

            yield f"bradley_terry: {prompts} prompts, arms at {true}, arm {arm}", true[arm], one


def matrices() -> Iterator[Setting]:
    true = [0.0, 0.5, 3.0]
    for a, b in ((0, 1), (2, 0), (2, 1)):

        def one(random, seed, a=a, b=b):
            found = pairwise_matrix(*compared(random, 160, true), resamples=RESAMPLES, seed=seed)
            return found[f"arm{a}"][f"arm{b}"]

        yield f"pairwise_matrix: 160 prompts, {a} over {b}", float(sigmoid(true[a] - true[b])), one


def documents(random: np.random.Generator, size: int, reference: float, arm: float) -> np.ndarray:
    """(2, size) results of 0 and 1, arm first, mostly the same."""
    uniform = correlated_uniforms(random, size, (2,), 0.9)
    return (uniform < [arm, reference]).astype(float).T


def shares() -> Iterator[Setting]:
    for size, (before, after) in product(
        (50, 250, 2000), ((0.5, 0.5), (0.5, 0.45), (0.92, 0.9), (0.98, 0.98))
    ):

        def one(random, seed, args=(size, before, after)):
            return difference_of_shares(*documents(random, *args))

        yield f"difference_of_shares: {size} documents, {before} to {after}", after - before, one


def corpora() -> Iterator[Setting]:
    """Documents of 5 to 60 words, 2 nats a word and 0.05 lost, by more in some than in others."""
    for size in (30, 250):
        for metric, truth in (
            ("word_perplexity", float(np.exp(2.05) - np.exp(2.0))),
            ("bits_per_byte", 0.05 / np.log(2)),
            ("score", -0.05),
        ):

            def one(random, seed, size=size, metric=metric):
                words = random.integers(5, 61, size)
                rate = 2 + 0.3 * random.normal(size=size)
                lost = 0.05 + 0.1 * random.normal(size=size)
                if metric == "score":
                    arm, reference = -rate - lost, -rate
                else:
                    arm = np.stack([-words * (rate + lost), words], axis=1)
                    reference = np.stack([-words * rate, words], axis=1)
                found = paired_difference(arm, reference, metric, resamples=RESAMPLES, seed=seed)
                return found.difference

            yield f"paired_difference: {metric}, {size} documents", truth, one


def taxes() -> Iterator[Setting]:
    tasks = ((0.5, 0.47), (0.9, 0.9), (0.97, 0.95))
    for size in (50, 250):

        def one(random, seed, size=size):
            return alignment_tax(
                difference_of_shares(*documents(random, size, *task)) for task in tasks
            )

        truth = float(np.mean([before - after for before, after in tasks]))
        yield f"alignment_tax: 3 tasks of {size} documents", truth, one


def accuracies() -> Iterator[Setting]:
    """Of a reward model on pairs of which several are of one prompt."""
    for prompts, pairs, share in product((60, 160), (1, 3), (0.75, 0.9)):

        def one(random, _seed, size=(prompts, pairs), share=share):
            right = verdicts(random, np.full(size, share), 0.3).ravel()
            margins, prompt = 2 * right - 1, np.repeat(np.arange(size[0]), size[1])
            found = calibration(margins, prompt)
            return Estimate(found["accuracy"], np.nan, found["low"], found["high"])

        yield f"calibration: accuracy {share}, {prompts} prompts x {pairs}", share, one


def text() -> Iterator[Setting]:
    def draw(random: np.random.Generator) -> np.ndarray:
        """(80,) shares of 40 prompts x 2 completions, each with a vocabulary of its own size."""
        sizes = np.repeat(random.choice([2, 3, 8], 40), 2)
        return np.array([repeated_share(random.integers(0, size, 12), 2) for size in sizes])

    truth = float(np.mean([draw(np.random.default_rng(seed)).mean() for seed in range(5000)]))

    def one(random, seed):
        return mean_interval(draw(random), np.repeat(np.arange(40), 2), resamples=RESAMPLES)

    yield "text_quality: repetition, 40 prompts x 2", truth, one


SUITES = {
    "win_rate": win_rates,
    "length": length_controlled,
    "ratings": ratings,
    "matrix": matrices,
    "shares": shares,
    "corpora": corpora,
    "tax": taxes,
    "accuracy": accuracies,
    "text": text,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=2000)
    parser.add_argument("--only", choices=SUITES)
    options = parser.parse_args()
    print("| setting | covered | below | above | width |\n|---|---|---|---|---|")
    for name, suite in SUITES.items():
        if options.only not in (None, name):
            continue
        for setting, truth, one in suite():
            random = np.random.default_rng(0)
            found = np.array([one(random, seed) for seed in range(options.experiments)])
            below, above = (found[:, 3] < truth).mean(), (found[:, 2] > truth).mean()
            width = (found[:, 3] - found[:, 2]).mean()
            figures = (1 - below - above, below, above, width)
            print(f"| {setting} |", " | ".join(f"{x:.3f}" for x in figures), "|", flush=True)


if __name__ == "__main__":
    main()
