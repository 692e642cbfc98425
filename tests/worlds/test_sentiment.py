"""The embedded world: its reward is the exact posterior, its text is varied, its rows are clean."""

from __future__ import annotations

import math
import random

import pytest

from betaflow.config import WorldSettings
from betaflow.data.splits import in_eval
from betaflow.worlds import lexicon
from betaflow.worlds.sentiment import (
    AGREEMENT,
    SCALE,
    World,
    build,
    gold_reward,
    log_odds,
    write_review,
)

MILD = math.log(AGREEMENT[lexicon.MILD] / (1 - AGREEMENT[lexicon.MILD]))
STRONG = math.log(AGREEMENT[lexicon.STRONG] / (1 - AGREEMENT[lexicon.STRONG]))


@pytest.mark.parametrize(
    ("text", "evidence"),
    [
        ("the plot was good", MILD),
        ("The plot was GOOD.", MILD),
        ("the plot was very superb and the cast was dull", STRONG - MILD),
        ("the plot was not good", -MILD),
        ("the plot was never so superb", -MILD),
        ("the plot was hardly awful", MILD),
        ("not the plot. good", MILD),
        ("a detective loses a map in paris", 0.0),
        ("", 0.0),
        ("goodness", 0.0),
        ("i loved the songs. what a bore", STRONG - MILD),
    ],
)
def test_evidence_by_hand(text: str, evidence: float) -> None:
    assert log_odds(text) == pytest.approx(evidence)
    assert gold_reward(text) == pytest.approx(SCALE * math.tanh(evidence / 2))


def test_the_posterior_is_calibrated_on_the_generator_s_own_text() -> None:
    """Among reviews whose posterior is p, a share p has a positive sentiment."""
    rng = random.Random(1)
    bins: dict[int, list[int]] = {}
    for _ in range(20_000):
        review = write_review(rng)
        positive = 1 / (1 + math.exp(-log_odds(review.text)))
        bins.setdefault(int(positive * 10), []).append(review.sentiment == 1)
    checked = 0
    for tenth, found in bins.items():
        if len(found) < 300:
            continue
        share, error = sum(found) / len(found), 0.5 / math.sqrt(len(found))
        assert tenth / 10 - 4 * error <= share <= (tenth + 1) / 10 + 4 * error
        checked += 1
    assert checked >= 8


def test_both_domains_hold_opinions_and_few_texts_repeat() -> None:
    for domain in (lexicon.MOVIES, lexicon.BOOKS):
        rng = random.Random(2)
        texts = [write_review(rng, domain).text for _ in range(2000)]
        words = {word.strip(".") for text in texts for word in text.split()}
        assert len(words) > 250
        assert len(set(texts)) > 1980
        assert sum(log_odds(text) != 0 for text in texts) > 1600


@pytest.fixture(scope="module")
def world() -> World:
    return build(
        WorldSettings(reviews=300, prompts=120, unlabelled=60, out_of_domain=30),
        seed=0,
        eval_fraction=0.2,
    )


def test_no_prompt_is_in_train_and_eval(world: World) -> None:
    sides = [
        {row["prompt"] for row in rows}
        for rows in (world.prompts_train, world.prompts_unlabelled, world.prompts_eval)
    ]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 180
    assert all(in_eval(prompt, 0.2) for prompt in sides[2])
    assert all(2 <= len(prompt.split(" ")) <= 8 for side in sides for prompt in side)


def test_the_second_domain_s_nouns_are_in_no_training_text(world: World) -> None:
    training = {word for row in world.sft_train for word in row["text"].rstrip(".").split()}
    assert not training & set(lexicon.BOOKS.works)
    only_books = lexicon.BOOKS.nouns() - lexicon.MOVIES.nouns()
    assert not training & only_books
    assert len(world.prompts_ood) == 30
    for row in world.prompts_ood:
        assert only_books & set(row["prompt"].replace(".", "").split()), row


def test_a_seed_gives_the_same_rows_and_another_gives_others(world: World) -> None:
    settings = WorldSettings(reviews=300, prompts=120, unlabelled=60, out_of_domain=30)
    assert build(settings, 0, 0.2) == world
    assert build(settings, 1, 0.2).sft_train != world.sft_train


def test_cloze_rows_hold_one_right_answer(world: World) -> None:
    texts = [row["text"] for row in world.sft_eval]
    for row, text in zip(world.cloze, texts, strict=False):
        answer = row["choices"][row["gold"]]
        assert text.startswith(f"{row['query']} {answer}")
        assert row["choices"].count(answer) == 1
        assert len(row["choices"]) == 4
