"""Which prompts keep their labels: nested shares, whatever the order of the rows."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from betaflow.data.labelled import batch_units, kept_pairs, labelled_prompts

PROMPTS = [f"prompt number {n}" for n in range(200)]


def test_shares_are_exact_and_nested() -> None:
    shares = [0.05, 0.25, 0.5, 1.0]
    kept = [labelled_prompts(PROMPTS, share) for share in shares]
    assert [len(some) for some in kept] == [10, 50, 100, 200]
    assert all(smaller < larger for smaller, larger in pairwise(kept))


def test_the_order_of_the_rows_and_repeated_prompts_do_not_matter() -> None:
    mixed = PROMPTS * 3
    random.Random(1).shuffle(mixed)
    assert labelled_prompts(mixed, 0.25) == labelled_prompts(PROMPTS, 0.25)
    # No seed either, and not the order in which prompts are written or sorted.
    assert labelled_prompts(PROMPTS, 0.1) != set(PROMPTS[:20])


def test_at_least_one_prompt_keeps_its_labels() -> None:
    assert len(labelled_prompts(PROMPTS[:3], 0.01)) == 1


@pytest.mark.parametrize("share", [0.3, 1])
def test_all_pairs_of_a_kept_prompt_are_kept(share: float) -> None:
    rows = [{"prompt": PROMPTS[n % 10], "id": n} for n in range(30)]
    places, prompts = kept_pairs(rows, share)
    assert len(prompts) == round(10 * share)
    assert len(places) == 3 * len(prompts)
    assert {rows[place]["prompt"] for place in places} == prompts
    assert places == sorted(places)


def test_prompts_can_be_left_out_before_the_share_is_taken() -> None:
    rows = [{"prompt": PROMPTS[n % 20]} for n in range(40)]
    without = PROMPTS[:10]
    places, prompts = kept_pairs(rows, 0.5, without)
    assert prompts == labelled_prompts(PROMPTS[10:20], 0.5)
    assert {rows[place]["prompt"] for place in places} == prompts
    assert kept_pairs(rows, 0.5, PROMPTS) == ([], set())


def test_a_batch_counts_pairs_or_prompts() -> None:
    rows = [{"prompt": prompt} for prompt in "aabbbc"]
    assert batch_units(rows, "pairs") == 6
    assert batch_units(rows, "prompts") == 3
