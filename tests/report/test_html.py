"""The page: foreign text stays text, nothing is fetched, the headline says what is known."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from parsed import Page

from betaflow.report.headline import sentences
from betaflow.report.text import visible


@pytest.fixture(scope="module")
def source(compared: Callable[..., Path], nasty: str) -> str:
    return (compared(text=nasty) / "report.html").read_text(encoding="utf-8")


def test_model_text_is_escaped(source: str) -> None:
    page = Page(source)
    assert source.count("<script") == len(page.scripts) == 4
    assert page.text.count('<script>alert("x")</script> & </pre>') == 3 * (1 + 6)
    assert all(c in "\n\t" or ord(c) >= 0x20 for c in page.text)
    assert "\u202e" not in source
    assert r"\x00\x1b[31m \u202eevil" in page.text


def test_model_text_in_the_scripts_data_holds_no_tag(source: str) -> None:
    data = Page(source).scripts["samples-data"]
    assert not set("<>&\u2028\u2029") & set(data)
    found = json.loads(data)
    assert len(found["prompts"]) == 6  # three of each domain
    for prompt in found["prompts"]:
        assert '<script>alert("x")</script> & </pre>' in prompt["text"]
        assert [len(drawn["completions"]) for drawn in prompt["drawn"]] == [6, 6, 6]


def test_one_file_with_nothing_fetched_and_no_script_but_its_own(source: str) -> None:
    page = Page(source)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "base", "form")
        assert not any(name == "style" or name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")  # type: ignore[union-attr]
        assert attributes.get("href", "#")[0] == "#"  # type: ignore[index]
    assert "http" not in page.text
    (policy,) = (a["content"] for _, a in page.tags if "http-equiv" in a)
    assert policy is not None
    sources = {"script": [page.scripts["1"], page.scripts["2"]], "style": [page.style]}
    for kind, texts in sources.items():
        digests = [b64encode(sha256(t.encode()).digest()).decode() for t in texts]
        hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
        assert f"{kind}-src {hashes};" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 7
    assert all(attributes["alt"] for attributes in images)


def test_tables_and_headings_are_told_to_screen_readers(source: str) -> None:
    page = Page(source)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") > 5
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    levels = [int(tag[1]) for tag in tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    linked = [a["href"] for tag, a in page.tags if tag == "a"]
    assert {f"#{name}" for name in ids} >= set(linked)


def test_the_page_says_how_it_was_made(source: str) -> None:
    text = Page(source).text
    for part in ("report_samples: 3", "make align", "torch", "vl-convert-python", "python"):
        assert part in text
    assert "base_url" not in text


def test_page_shows_the_numbers_and_says_how_sure(source: str) -> None:
    text = Page(source).text
    for part in ("40 held-out prompts", "95% interval", "400 documents", "Limits"):
        assert part in text
    assert "4 DPO arms and 1 PPO arm" in text
    assert "β: 0.1, 0.3, 1.0, 3.0; rate: 0.001" in text
    assert "4,860 preference pairs" in text


def test_every_section_on_statistics_is_there_with_tables_for_every_reader(source: str) -> None:
    page = Page(source)
    for title in ("Pairwise win rates", "Ratings", "Length", "Alignment tax", "Text quality"):
        assert f">{title}</h2>" in source
    assert ">Power</h2>" in source
    sections = source.split(">Pairwise win rates</h2>")[1].split('<h2 id="judge">')[0]
    assert sections.count("<table ") == sections.count("<caption>") == 6
    cells = [attributes for tag, attributes in Page(sections).tags if tag == "th"]
    assert len(cells) > 40
    assert all(attributes["scope"] in ("col", "row") for attributes in cells)
    assert "this run has 40" in page.text


def test_visible_keeps_ordinary_text() -> None:
    text = "Ünïcode 字, emoji 🙂,\ta tab\nand a line"
    assert visible(text) == text
    assert visible("a\r\nb\x07\x9b\ud800") == "a\nb\\x07\\x9b\\ud800"


def document(**changes: Any) -> dict[str, Any]:
    row = {
        "arm": "dpo-b0.1-lr0.001-s0",
        "method": "dpo",
        "beta": 0.1,
        "temperature": 1.0,
        "prompts": 160,
        "samples": 320,
        "win_rate_vs_sft": 0.8,
        "win_rate_vs_sft_prompts": 158,
        "win_rate_vs_sft_verdicts": 301,
        "win_rate_vs_ppo_prompts": 157,
        "win_rate_vs_ppo_verdicts": 300,
        "win_rate_vs_sft_low": 0.75,
        "win_rate_vs_sft_high": 0.85,
        "win_rate_vs_ppo": 0.52,
        "win_rate_vs_ppo_low": 0.46,
        "win_rate_vs_ppo_high": 0.58,
    }
    lead = {"arm": "other", "difference": 0.1, "difference_low": 0.05, "difference_high": 0.15}
    return {
        "rows": [row | changes],
        "leads": [lead],
        "temperature": 1.0,
        "confidence": 0.95,
        "best": row["arm"],
        "ppo_arm": "ppo",
        "judge": "gold",
    }


def test_headline_of_a_clear_winner() -> None:
    found = " ".join(sentences(document()))
    assert "DPO at β = 0.1 (dpo-b0.1-lr0.001-s0) has the highest win rate against SFT" in found
    assert "80.0% [75.0%, 85.0%] (95% interval, 158 prompts, 301 verdicts)" in found
    assert "on the same prompts (157 prompts, 300 verdicts)" in found
    assert "larger than chance explains; the smallest is that over other (+10.0 points " in found
    assert "points [5.0, 15.0])" in found
    assert "neither is shown to be better" in found
    assert "favours PPO" not in found


def test_headline_admits_what_it_cannot_tell() -> None:
    unsure = document(win_rate_vs_sft_low=0.45, win_rate_vs_ppo_low=0.3, win_rate_vs_ppo_high=0.45)
    unsure["leads"][0]["difference_low"] = -0.01
    found = " ".join(sentences(unsure))
    assert "no arm is shown to beat SFT" in found
    assert "not distinguishable from other (+10.0 points [-1.0, 15.0])" in found
    assert "PPO is preferred to it" in found


def test_headline_warns_of_a_reward_model_no_better_than_a_coin() -> None:
    judged = document() | {"judge": "reward_model"}
    about = {"accuracy": 0.474, "low": 0.35, "high": 0.601}
    found = " ".join(sentences(judged | {"reward_model": about}))
    assert "right on 47.4% [35.0%, 60.1%], which is not shown to be better than a coin" in found
    for known in (None, about | {"accuracy": 0.62, "low": 0.55, "high": 0.7}):
        found = " ".join(sentences(judged | {"reward_model": known}))
        assert "favours PPO" in found
        assert "coin" not in found


def test_headline_says_where_two_arms_share_no_verdict() -> None:
    apart = document()
    apart["leads"][0] |= {"difference": None, "difference_low": None, "difference_high": None}
    found = " ".join(sentences(apart))
    assert "It is not distinguishable from other (no sample was judged of both)" in found


def test_headline_names_the_arms_that_beat_sft_where_the_best_does_not() -> None:
    """One with more ties has a lower win rate, and a surer one."""
    unsure = document(win_rate_vs_sft=0.55, win_rate_vs_sft_low=0.49)
    (best,) = unsure["rows"]
    sure = best | {"win_rate_vs_sft": 0.54, "win_rate_vs_sft_low": 0.52}
    no_matter = [
        sure | {"arm": "sft", "method": "sft"},
        sure | {"arm": "yardstick", "method": "best_of_n"},
        sure | {"arm": "elsewhere", "temperature": 0.5},
        sure | {"arm": "unknown", "win_rate_vs_sft_low": None},
    ]
    unsure["rows"] = [best, *no_matter]
    assert "Its interval reaches one half, and no arm is shown to beat SFT." in sentences(unsure)
    unsure["rows"] = [best, *no_matter, sure | {"arm": "ipo"}, sure | {"arm": "ppo"}]
    found = " ".join(sentences(unsure))
    assert "no arm is shown" not in found
    assert "reaches one half; shown to beat SFT, by their own intervals: ipo, ppo." in found


def test_headline_of_ppo_itself_and_of_one_prompt() -> None:
    one = document(win_rate_vs_sft_low=None, win_rate_vs_sft_high=None) | {
        "ppo_arm": "dpo-b0.1-lr0.001-s0"
    }
    found = " ".join(sentences(one))
    assert "80.0% (no interval)" in found
    assert "It has no interval, and no arm is shown to beat SFT." in found
    assert "on the same prompts" not in found


def test_a_page_of_little(compared: Callable[..., Path]) -> None:
    """No gold reward, no held-out pair, two prompts."""
    folder = compared(gold=False, held_out=0, prompts=2, resamples=100)
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    figures = {a["data-figure"] for _, a in page.tags if "data-figure" in a}
    live = {"reward_kl", "win_rate", "training_dpo", "training_ppo", "pairwise", "alignment_tax"}
    assert figures == set(json.loads(page.scripts["figures-data"])) == live
    assert "reward model's score" in page.text
