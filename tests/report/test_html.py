"""The page: foreign text stays text, nothing is fetched, the headline says what is known."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from betaflow.config import Params
from betaflow.report.build import build, render
from betaflow.report.headline import sentences
from betaflow.report.text import visible

Workspace = Callable[..., Params]


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def source(workspace: Workspace, nasty: str, tmp_path: Path) -> str:
    params = workspace(text=nasty)
    build(params, tmp_path)
    render(params, tmp_path)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_model_text_is_escaped(source: str) -> None:
    page = Page(source)
    assert "<script" not in source
    assert all(tag != "script" for tag, _ in page.tags)
    assert page.text.count('<script>alert("x")</script> & </pre>') == 3 * (1 + 6)
    assert all(c in "\n\t" or ord(c) >= 0x20 for c in source)
    assert "\u202e" not in source
    assert r"\x00\x1b[31m \u202eevil" in page.text


def test_one_file_with_no_script_and_nothing_fetched(source: str) -> None:
    page = Page(source)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")  # type: ignore[union-attr]
    assert "http" not in source.replace("http-equiv", "")
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 7
    assert all(attributes["alt"] for attributes in images)


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
        assert f"<h2>{title}</h2>" in source
    assert "<h2>Power</h2>" in source
    sections = source.split("<h2>Pairwise")[1].split("<h2>Samples")[0]
    assert sections.count("<table>") == sections.count("<caption>") == 6
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
    assert "80.0% [75.0%, 85.0%]" in found
    assert "larger than chance explains" in found
    assert "neither is shown to be better" in found
    assert "favours PPO" not in found


def test_headline_admits_what_it_cannot_tell() -> None:
    unsure = document(win_rate_vs_sft_low=0.45, win_rate_vs_ppo_low=0.3, win_rate_vs_ppo_high=0.45)
    unsure["leads"][0]["difference_low"] = -0.01
    found = " ".join(sentences(unsure))
    assert "no arm is shown to beat SFT" in found
    assert "not distinguishable from other" in found
    assert "PPO is preferred to it" in found


def test_headline_of_ppo_itself_and_of_one_prompt() -> None:
    one = document(win_rate_vs_sft_low=None, win_rate_vs_sft_high=None) | {
        "ppo_arm": "dpo-b0.1-lr0.001-s0"
    }
    found = " ".join(sentences(one))
    assert "80.0% (no interval)" in found
    assert "on the same prompts" not in found
