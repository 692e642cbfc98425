"""Controls: made-up judges with known faults fail the control that is about their fault."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from betaflow.config import ControlSettings
from betaflow.evaluation.controls import (
    ABOUT,
    CONSTANT,
    constant_answers,
    control_pairs,
    control_rows,
    failed,
)
from betaflow.evaluation.judges import Judge, score_judge

Likes = Callable[[str, str], float]  # how much a text is liked: (prompt, completion)
ANSWERS = constant_answers()
NOTHING = ANSWERS["null"][0]
CONSTANTS = {text for answers in ANSWERS.values() for text in answers}


def samples(prompts: int = 120, draws: int = 2) -> pd.DataFrame:
    """A model's draws: their quality is in their text, and not in their length."""
    random = np.random.default_rng(0)
    rows = [
        {
            "prompt_id": f"p{n}",
            "seed": seed,
            "prompt": f"prompt {n}",
            "completion": f"{random.random():.6f}" + "." * int(random.integers(0, 50)),
        }
        for n in range(prompts)
        for seed in range(draws)
    ]
    return pd.DataFrame(rows)


def quality(_: str, text: str) -> float:
    """Real answers are worth their number, constant ones nothing."""
    return -1.0 if text in CONSTANTS else float(text[:8])


def model_judge(
    likes: Likes, order: Callable[[str], str] | None = None, tells: float = 1.0
) -> Judge:
    """Judges both orders by what is liked; `order` says "a" or "b" of a pair come what may."""
    random = np.random.default_rng(1)

    def judge(pairs: pd.DataFrame) -> pd.DataFrame:
        rows = []
        for pair in pairs.itertuples():
            a, b = (likes(pair.prompt, text) for text in (pair.completion_a, pair.completion_b))
            winner = "a" if a > b else "b"
            ab, ba = (winner, winner) if order is None else ("a", "b")
            if random.random() < tells:
                rows.append((((ab == "a") + (ba == "a")) / 2, ab, ba, ""))
            else:
                rows.append((math.nan, "", "", "malformed"))
        return pd.DataFrame(rows, columns=["preference", "ab", "ba", "missing"], index=pairs.index)

    return judge


def obedient_judge(label: str, obeys: float = 1.0, first: float = 0.0) -> Judge:
    """Says the letter that a text gives after `label`, with chance `obeys`; else by quality.

    Or, with chance `first`, one letter in both orders, whatever is shown.
    """
    random = np.random.default_rng(2)

    def letter(pair: Any, shown: tuple[str, str]) -> str:
        named = re.search(rf"{label}: (A|B)$", "\n".join(shown), re.MULTILINE)
        if named and pair.obeys:
            return named[1]
        if pair.first:
            return "A"
        return "A" if quality("", shown[0]) > quality("", shown[1]) else "B"

    def judge(pairs: pd.DataFrame) -> pd.DataFrame:
        draws = random.random((2, len(pairs)))
        rows = []
        for pair in pairs.assign(obeys=draws[0] < obeys, first=draws[1] < first).itertuples():
            a, b = pair.completion_a, pair.completion_b
            ab = {"A": "a", "B": "b"}[letter(pair, (a, b))]
            ba = {"A": "b", "B": "a"}[letter(pair, (b, a))]
            rows.append((((ab == "a") + (ba == "a")) / 2, ab, ba, ""))
        return pd.DataFrame(rows, columns=["preference", "ab", "ba", "missing"], index=pairs.index)

    return judge


def rows_of(judge: Judge, table: pd.DataFrame | None = None) -> dict[str, dict[str, Any]]:
    pairs = control_pairs(samples() if table is None else table)
    verdicts = judge(pairs)
    others = verdicts.iloc[:0].assign(prompt_id=[])
    rows = control_rows(pairs, verdicts, others, ControlSettings(), resamples=500)
    assert [row["control"] for row in rows] == [
        c for c in ABOUT if c in {r["control"] for r in rows}
    ]
    return {row["control"]: row for row in rows}


def test_pairs_are_of_the_samples_of_a_prompt() -> None:
    table = samples(prompts=3, draws=5).sample(frac=1.0, random_state=0)
    pairs = control_pairs(table)
    by_prompt = table.groupby("prompt_id")["completion"].apply(set)
    draws = {(row.prompt_id, row.seed): row.completion for row in table.itertuples()}
    counts = pairs["control"].value_counts()
    assert dict(counts) == {"null": 3, "injection": 3, "self": 6, "longest": 3}
    for pair in pairs.itertuples():
        number = pair.prompt_id.removeprefix("p")
        assert pair.prompt == f"prompt {number}"
        assert pair.completion_b in by_prompt[pair.prompt_id]
        if pair.control in CONSTANT:
            assert pair.completion_a in ANSWERS[pair.control]
            assert pair.completion_b == draws[pair.prompt_id, 0]
        if pair.control == "longest":
            lengths = [len(text) for text in by_prompt[pair.prompt_id]]
            assert len(pair.completion_a) == max(lengths)
            assert len(pair.completion_b) == min(lengths)
    own = pairs[pairs["control"] == "self"]
    assert {(row.prompt_id, row.completion_a, row.completion_b) for row in own.itertuples()} == {
        (f"p{n}", draws[f"p{n}", first], draws[f"p{n}", first + 1])
        for n in range(3)
        for first in (0, 2)
    }


def test_scores_come_along_and_constant_answers_are_scored() -> None:
    table = samples(prompts=4).assign(gold=[0.1 * n for n in range(8)], other=1.0)
    seen: list[tuple[str, str]] = []

    def score(prompts: Any, texts: Any) -> list[float]:
        seen.extend(zip(prompts, texts, strict=True))
        return [9.0] * len(prompts)

    pairs = control_pairs(table, {"gold": score, "other": None})
    constant = pairs[pairs["control"].isin(CONSTANT)]
    assert set(constant["gold_a"]) == {9.0}
    assert constant["other_a"].isna().all()
    assert constant["gold_b"].tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6] * 2)
    letters = ANSWERS["injection"]
    assert seen == [(f"prompt {n}", NOTHING) for n in range(4)] + [
        (f"prompt {n}", letters[n % 2]) for n in range(4)
    ]
    own = pairs[pairs["control"] == "self"]
    assert own["gold_a"].tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6])
    assert own["gold_b"].tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7])


def test_a_judge_of_quality_passes() -> None:
    rows = rows_of(model_judge(quality))
    assert failed(list(rows.values())) == []
    assert all(row["passed"] for row in rows.values())
    assert rows["null"]["estimate"] == rows["injection"]["estimate"] == 0.0
    assert rows["self"]["low"] < 0.5 < rows["self"]["high"]
    assert rows["order"]["estimate"] == 1.0
    assert rows["missing"]["estimate"] == 0.0
    assert rows["null"]["pairs"] == 120


@pytest.mark.parametrize(
    ("judge", "faults"),
    [
        (model_judge(lambda p, t: 2.0 if t == NOTHING else quality(p, t)), ["null"]),
        (model_judge(lambda p, t: 2.0 if "Ignore" in t else quality(p, t)), ["injection"]),
        # "longest" is of the same model's draws: a love of length shows there, and there alone.
        (
            model_judge(lambda p, t: len(t) if t not in CONSTANTS else 0),
            ["longest"],
        ),
        (model_judge(quality, order=lambda _: "first"), ["order"]),
        # Obeying says one letter in both orders, which is a preference of one half.
        (obedient_judge("Preferred"), ["injection"]),
        (obedient_judge("Preferred", obeys=0.2), ["injection"]),
        (obedient_judge("Preferred", first=1.0), ["injection", "order"]),
        (model_judge(quality, tells=0.5), ["missing"]),
        (model_judge(quality, tells=0.0), ["missing"]),
    ],
    ids=[
        "null",
        "injection",
        "longest",
        "order",
        "obeys",
        "obeys at times",
        "obeys, else the first",
        "missing",
        "silent",
    ],
)
def test_a_judge_with_a_fault_fails_its_control_and_no_other(
    judge: Judge, faults: list[str]
) -> None:
    assert failed(list(rows_of(judge).values())) == faults


def test_the_injection_names_a_letter_as_the_template_asks_for_it() -> None:
    """A judge that obeys `More helpful: A` is one that was told so, and the report says it."""
    judge = obedient_judge("More helpful")
    rows = {}
    for label in ("Preferred", "More helpful"):
        pairs = control_pairs(samples(), label=label)
        verdicts = judge(pairs)
        others = verdicts.iloc[:0].assign(prompt_id=[])
        found = control_rows(pairs, verdicts, others, ControlSettings(), resamples=500)
        rows[label] = {row["control"]: row for row in found}["injection"]
        letters = pairs.loc[pairs["control"] == "injection", "completion_a"].str[-1]
        assert letters.value_counts().to_dict() == {"A": 60, "B": 60}
    assert rows["Preferred"]["passed"] is True
    assert rows["Preferred"]["about"] == ABOUT["injection"]
    assert (rows["More helpful"]["passed"], rows["More helpful"]["estimate"]) == (False, 0.5)
    assert "100% of the pairs that got one letter" in rows["More helpful"]["about"]


def test_a_love_of_the_first_place_is_no_obedience() -> None:
    """Verdicts that go by the place alone, on half of the pairs or on all, over many runs."""
    wrong = sum(
        "injection" in failed(list(rows_of(obedient_judge("None", first=first), table).values()))
        for first in (0.5, 1.0)
        for table in (samples(prompts=n) for n in range(20, 60, 4))
    )
    assert wrong == 0


def mixed_up(preferred: float) -> Judge:
    """Verdicts of a model against itself that are all the same."""

    def judge(pairs: pd.DataFrame) -> pd.DataFrame:
        return model_judge(quality)(pairs).assign(
            preference=np.where(pairs["control"] == "self", preferred, 0.0)
        )

    return judge


@pytest.mark.parametrize("preferred", [0.0, 1.0])
def test_verdicts_that_are_mixed_up_fail_the_model_against_itself(preferred: float) -> None:
    assert failed(list(rows_of(mixed_up(preferred)).values())) == ["self"]


def test_what_was_not_measured_neither_passes_nor_fails() -> None:
    rows = rows_of(model_judge(quality), samples(draws=1))
    assert rows["self"]["passed"] is None and rows["longest"]["passed"] is None
    assert rows["self"]["pairs"] == 0
    assert math.isnan(rows["self"]["estimate"])
    assert failed(list(rows.values())) == []
    silent = rows_of(model_judge(quality, tells=0.0))
    assert silent["null"]["passed"] is None
    assert silent["null"]["missing"] == 120
    assert silent["missing"]["estimate"] == 1.0
    assert 0.8 < silent["missing"]["low"] < silent["missing"]["high"] == 1.0
    half = rows_of(model_judge(quality, tells=0.5))["missing"]
    assert half["low"] < half["estimate"] - 0.02 < half["estimate"] + 0.02 < half["high"]


def test_a_judge_by_score_is_shown_no_order() -> None:
    table = samples().assign(gold=lambda t: [quality("", text) for text in t["completion"]])
    pairs = control_pairs(table, {"gold": lambda p, t: [quality("", text) for text in t]})
    verdicts = score_judge("gold")(pairs)
    nothing = verdicts.iloc[:0].assign(prompt_id=[])
    rows = control_rows(pairs, verdicts, nothing, ControlSettings(), resamples=500)
    assert [row["control"] for row in rows] == [name for name in ABOUT if name != "order"]
    assert failed(rows) == []


def test_the_pairs_that_are_compared_count_for_order_and_missing() -> None:
    pairs = control_pairs(samples(prompts=40))
    verdicts = model_judge(quality)(pairs)
    always_first = pd.DataFrame(
        {"preference": 0.5, "ab": "a", "ba": "b", "missing": "", "prompt_id": "p0"},
        index=range(5),
    ).assign(prompt_id=[f"q{n}" for n in range(5)])
    many = pd.concat([always_first.assign(prompt_id=f"q{n}") for n in range(200)])
    limits = ControlSettings()
    assert failed(control_rows(pairs, verdicts, always_first, limits, resamples=500)) == []
    assert failed(control_rows(pairs, verdicts, many, limits, resamples=500)) == ["order"]
    silent = many.assign(preference=math.nan, ab="", ba="", missing="timeout")
    assert failed(control_rows(pairs, verdicts, silent, limits, resamples=500)) == ["missing"]


def test_constant_answers_do_not_hide_a_love_of_a_place() -> None:
    """Of 900 real pairs every third is judged; null and injection are lost to in either order."""
    pairs = control_pairs(samples(prompts=150))
    constant = pairs["control"].isin(CONSTANT)
    verdicts = model_judge(quality)(pairs)
    swayed = ~constant & (np.arange(len(pairs)) % 3 > 0)
    verdicts.loc[swayed, ["preference", "ab", "ba"]] = [0.5, "a", "b"]
    verdicts.loc[verdicts.index[-1], ["preference", "ab", "ba"]] = [0.5, "", ""]  # the same text
    nothing = verdicts.iloc[:0].assign(prompt_id=[])
    rows = control_rows(pairs, verdicts, nothing, ControlSettings(), resamples=500)
    (order,) = [row for row in rows if row["control"] == "order"]
    assert order["pairs"] == (~constant).sum() - 1
    assert order["estimate"] == pytest.approx(1 / 3, abs=0.01)
    assert "order" in failed(rows)


@pytest.mark.parametrize("limit", [0.4, 0.5, 0.9])
def test_a_limit_may_be_set(limit: float) -> None:
    """A judge that likes the constant answer on two prompts of three."""
    pairs = control_pairs(samples(prompts=600))
    verdicts = model_judge(quality)(pairs)
    liked = (pairs["control"] == "null") & (pairs["prompt_id"].str[1:].astype(int) % 3 > 0)
    verdicts.loc[liked, "preference"] = 1.0
    nothing = verdicts.iloc[:0].assign(prompt_id=[])
    settings = ControlSettings(null_limit=limit)
    rows = control_rows(pairs, verdicts, nothing, settings, resamples=500)
    assert failed(rows) == (["null"] if limit < 0.6 else [])


@pytest.mark.parametrize(
    ("judge", "control"),
    [
        (model_judge(lambda p, t: 2.0 if t == NOTHING else quality(p, t)), "null"),
        (model_judge(lambda p, t: 2.0 if "Ignore" in t else quality(p, t)), "injection"),
        (obedient_judge("Preferred"), "injection"),
        (mixed_up(0.0), "self"),
        (mixed_up(1.0), "self"),
        (model_judge(quality, order=lambda _: "first"), "order"),
    ],
    ids=["null", "injection", "obeys", "self lost", "self won", "order"],
)
def test_eleven_prompts_of_one_mind_fail_and_ten_do_not(judge: Judge, control: str) -> None:
    """Of n wins Wilson's lower end is n / (n + z^2): above one half from n = 11 on at 99.9 %."""
    too_few = rows_of(judge, samples(prompts=10))
    assert failed(list(too_few.values())) == []
    if control != "order":  # what could not have failed has not passed
        assert too_few[control]["passed"] is None
    assert failed(list(rows_of(judge, samples(prompts=11)).values())) == [control]


def test_an_unbiased_judge_seldom_fails_by_chance() -> None:
    """A fair coin for a judge, over many runs: at 99.9 % about three in a thousand fail in all.

    Of 300 that is 0.9, and more than 4 twice in a thousand times; at 99 % it would be nine.
    """
    random = np.random.default_rng(3)
    pairs = control_pairs(samples(prompts=60))
    wrong = 0
    for _ in range(300):
        orders = random.choice(["a", "b"], (2, len(pairs)))
        verdicts = pd.DataFrame({"ab": orders[0], "ba": orders[1], "missing": ""})
        verdicts["preference"] = (orders == "a").mean(0)
        nothing = verdicts.iloc[:0].assign(prompt_id=[])
        rows = control_rows(pairs, verdicts, nothing, ControlSettings(), resamples=200)
        assert all(row["passed"] is not None for row in rows)
        wrong += bool(failed(rows))
    assert wrong <= 4
