"""The report in a real headless Chromium, read from its file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

EVIL = "</script><script>window.hacked=1</script> <img src=x onerror=window.hacked=1>"
FIGURES = ["reward_kl", "frontier", "win_rate", "training_dpo", "training_ppo", "reward_model"]
FIGURES += ["pairwise", "alignment_tax"]
NUMBERS = {"training_dpo": 3, "training_ppo": 2, "reward_model": 2, "frontier": 2}
DPO, PPO = "dpo-b0.1-lr0.001-s0", "ppo-b0.1-kl0-lr0.0003-s0"
WAIT = 120_000  # ms; a busy machine draws slowly


@pytest.fixture(scope="module")
def report(compared: Callable[..., Path]) -> Path:
    return compared(text=EVIL, prompts=12, resamples=100, draws=512) / "report.html"


@contextmanager
def opened(browser: Browser, report: Path, **options: Any) -> Iterator[tuple[Page, list[str]]]:
    """The page, and what went wrong: errors, refusals, and every address but its own."""
    faults: list[str] = []
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.on("console", lambda said: faults.append(f"{said.type}: {said.text}"))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda asked: faults.append(asked.url))
    page.goto(report.as_uri())
    yield page, faults
    context.close()


def drawn(page: Page, theme: str) -> None:
    page.wait_for_selector(f"html[data-drawn={theme}]", state="attached")


@pytest.fixture(scope="module")
def light(chromium: Browser, report: Path) -> Iterator[tuple[Page, list[str]]]:
    """The page as most tests read it; each leaves it as it was."""
    with opened(chromium, report, color_scheme="light") as (page, faults):
        drawn(page, "light")
        yield page, faults


def test_every_figure_is_drawn_and_nothing_is_said_or_fetched(
    light: tuple[Page, list[str]], report: Path
) -> None:
    page, faults = light
    for name in FIGURES:
        place = page.locator(f"figure[data-figure={name}]")
        assert place.locator(".panel[role=graphics-document][aria-label] svg").count() >= 1, name
        assert place.locator("img.static").is_hidden(), name
    wide = """[...document.querySelectorAll(".panel")].filter((panel) =>
        panel.querySelector("svg").getBoundingClientRect().width > panel.clientWidth + 1)"""
    assert page.evaluate(f"{wide}.length") == 0
    assert page.locator("#samples-static").is_hidden()
    assert faults == [report.as_uri()]


def test_a_point_tells_its_arm_value_interval_and_number(light: tuple[Page, list[str]]) -> None:
    page, _ = light
    page.locator("[data-figure=reward_kl] .mark-symbol path").nth(1).hover(force=True)
    told = page.locator("#vg-tooltip-element.visible").inner_text()
    assert DPO in told
    assert "12 prompts, 24 samples" in told
    assert told.count("[") >= 3


def test_cells_and_differences_tell_their_interval_and_number(
    light: tuple[Page, list[str]],
) -> None:
    page, _ = light
    cell = page.locator("[data-figure=pairwise] .mark-rect path").first
    told = cell.get_attribute("aria-label")
    assert told is not None
    assert re.fullmatch(r"\S+ over \S+: [\d.]+% \[[\d.]+, [\d.]+\], 12 prompts", told)
    cell.hover(force=True)
    assert "12 prompts" in page.locator("#vg-tooltip-element.visible").inner_text()
    page.locator("[data-figure=alignment_tax] .mark-symbol path").first.hover(force=True)
    told = page.locator("#vg-tooltip-element.visible").inner_text()
    assert "acc less SFT's, 400 documents" in told
    assert "p" in told and "[" in told
    place = page.locator("[data-figure=alignment_tax] .panel")
    assert place.count() == 3
    assert place.first.locator(".mark-symbol path").count() == 5
    methods = page.locator("table", has_text="Methods as wholes").locator("tbody tr").first
    assert "4 settings, 12 prompts" in methods.inner_text()
    assert methods.inner_text().rstrip().endswith("–")  # less itself


@pytest.mark.parametrize("name", NUMBERS)
def test_the_numbers_of_a_figure_open_by_keyboard(light: tuple[Page, list[str]], name: str) -> None:
    page, _ = light
    place = page.locator(f"figure[data-figure={name}]")
    tables = place.locator("details table")
    assert tables.count() == NUMBERS[name]
    assert tables.first.is_hidden()
    place.locator("summary").press("Enter")
    for number in range(NUMBERS[name]):
        table = tables.nth(number)
        expect(table).to_be_visible()
        assert table.locator("caption").inner_text()
        assert table.locator("thead th[scope=col]").count() in (2, 3, 4)
        assert table.locator("tbody th[scope=row]").count() >= 5
        assert "nan" not in table.inner_text().lower()
    text = place.locator("details").inner_text()
    expected = {"training_dpo": DPO, "training_ppo": PPO, "reward_model": "of 60 held-out pairs"}
    assert expected.get(name, "12 prompts, 512 draws") in text
    place.locator("summary").press("Enter")
    assert tables.first.is_hidden()


def test_the_legend_shows_the_chosen_arms_alone(light: tuple[Page, list[str]]) -> None:
    page, _ = light
    place = page.locator("figure[data-figure=training_dpo]")
    faint = place.locator(".mark-line path[opacity='0.06']")
    button = place.get_by_role("button", name=DPO)
    assert faint.count() == 0
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    expect(faint).to_have_count(3 * 3)  # three other arms, three panels
    button.press("Enter")
    expect(faint).to_have_count(0)


def test_filters_narrow_the_samples(light: tuple[Page, list[str]]) -> None:
    page, _ = light
    count, verdict = page.locator("#samples-count"), page.locator("#samples-verdict")
    assert count.inner_text() == "30 completions of 6 prompts"  # 5 arms, 3 prompts of 2 domains
    assert page.locator("#samples-list section").count() == 4
    page.locator("#samples-next").click()
    assert page.locator("#samples-list section").count() == 2
    assert page.locator("#samples-page").inner_text() == "Page 2 of 2"
    found = {}
    for value in ("won", "lost", "tie", "none"):
        verdict.select_option(value)
        found[value] = int(count.inner_text().split()[0])
    assert sum(found.values()) == 30
    assert found["won"] > found["lost"] > 0 == found["none"]
    verdict.select_option("won")
    assert page.locator("#samples-list .won").count() > 0
    assert page.locator("#samples-list .lost").count() == 0
    verdict.select_option("")
    page.locator("#samples-domain").select_option("another domain")
    assert count.inner_text() == "15 completions of 3 prompts"
    page.locator("#samples-domain").select_option("")
    page.locator("#samples-temperature").select_option("")
    assert count.inner_text() == "90 completions of 6 prompts"
    page.locator("#samples-temperature").select_option("1")
    page.locator("#samples-search").fill(f"A {PPO} THING")
    assert count.inner_text() == "6 completions of 6 prompts"
    page.locator("#samples-search").fill("film number 2")
    assert count.inner_text() == "10 completions of 2 prompts"
    page.locator("#samples-search").fill("")
    arm = page.locator("#samples-arms").get_by_role("button", name=PPO)
    arm.press("Space")
    assert count.inner_text() == "6 completions of 6 prompts"
    assert page.locator("#samples-list h4").all_inner_texts()[0].startswith("sft")
    arm.press("Space")
    assert count.inner_text() == "30 completions of 6 prompts"


def test_model_text_stays_text(light: tuple[Page, list[str]]) -> None:
    page, _ = light
    card = page.locator("#samples-list .card").nth(1)
    assert card.locator("pre").inner_text() == f" a {DPO} thing {EVIL}"
    page.locator("#samples-differences").check()
    assert card.locator("pre").inner_text().replace("sft ", "") == f" a {DPO} thing {EVIL}"
    assert card.locator("del").all_inner_texts() == ["sft "]
    assert card.locator("ins").all_inner_texts() == [f"{DPO} "]
    page.locator("#samples-differences").uncheck()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img:not(.static), #samples-list script").count() == 0


def test_tables_are_sorted_by_keyboard(light: tuple[Page, list[str]]) -> None:
    page, _ = light
    table = page.locator("table.sortable").first
    head = table.locator("thead th", has_text="KL, nats")
    values = table.locator(f"tbody tr > :nth-child({1 + head.evaluate('th => th.cellIndex')})")
    head.locator("button").focus()
    for order, told in ((1, "ascending"), (-1, "descending")):
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == told
        numbers = [float(text.split("\n")[0]) for text in values.all_inner_texts()]
        assert numbers == sorted(numbers, key=lambda number: order * number)
        assert len(set(numbers)) == len(numbers) > 4
    table.locator("thead button").first.press("Enter")
    assert table.locator("[aria-sort]").count() == 1
    # Shares of the optimum that are not known, SFT's among them, stay last whichever way.
    shares = table.locator("thead th", has_text="% of the optimum")
    for _ in range(2):
        shares.locator("button").press("Enter")
        assert table.locator("tbody tr > th").last.inner_text() == "sft"


@pytest.mark.parametrize(
    "told",
    [
        ["7%", "99%", "> 99%", "1,234%", "–"],
        ["-0.2 ± 0.1", "0.5699 ± 0.0200", "0.61 ± 0.02", "4e+3 ± 1", "–"],
        ["0.5 to 4", "1 to 3.5", "1.5 to 2", "12 to 40", ""],
    ],
)
def test_errors_bounds_and_ranges_are_sorted_as_numbers(
    light: tuple[Page, list[str]], told: list[str]
) -> None:
    page, _ = light
    table = page.locator("h2#power ~ .scroll table.sortable").first
    cells = table.locator("tbody tr > :last-child")
    write = "(cells, told) => cells.forEach((cell, at) => (cell.textContent = told[at]))"
    cells.evaluate_all(write, [told[at] for at in (2, 0, 4, 3, 1)])
    head = table.locator("thead th").last
    head.evaluate("th => th.removeAttribute('aria-sort')")
    head.locator("button").press("Enter")
    assert cells.all_inner_texts() == told
    head.locator("button").press("Enter")
    assert cells.all_inner_texts() == [*told[-2::-1], told[-1]]


def test_controls_have_names(light: tuple[Page, list[str]]) -> None:
    page, _ = light
    unnamed = """[...document.querySelectorAll("button, select, input")].filter(
        (one) => !one.textContent.trim() && !(one.labels && one.labels.length))"""
    assert page.evaluate(f"{unnamed}.map((one) => one.outerHTML)") == []
    assert page.locator("#samples-count").get_attribute("aria-live") == "polite"


def test_dark_by_the_system_and_by_the_button(chromium: Browser, report: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with opened(chromium, report, color_scheme="dark") as (page, faults):
        drawn(page, "dark")
        assert page.evaluate(ground) == "rgb(20, 23, 27)"
        words = page.locator("[data-figure=win_rate] .role-axis-title text").first
        assert words.get_attribute("fill") == "#e6e9ec"
        page.locator("[data-figure=win_rate]").get_by_role("button", name=DPO).click()
        page.locator("#theme").press("Enter")
        drawn(page, "light")
        assert page.evaluate(ground) == "rgb(255, 255, 255)"
        assert words.get_attribute("fill") == "#1b1f24"
        pressed = page.locator("[data-figure=win_rate] .legend [aria-pressed=true]")
        assert pressed.all_inner_texts() == [DPO]  # what was chosen stays so
        assert faults == [report.as_uri()]


@pytest.mark.parametrize("width", [400, 1200])
def test_without_scripts_pictures_tables_and_samples_are_there(
    chromium: Browser, report: Path, width: int
) -> None:
    size = {"width": width, "height": 900}
    with opened(chromium, report, java_script_enabled=False, viewport=size) as (page, _):
        for name in FIGURES:
            assert page.locator(f"figure[data-figure={name}] img.static").is_visible(), name
        assert page.locator("#samples-static .card pre").first.is_visible()
        for name in ("#browser", "#theme", ".live"):
            assert page.locator(name).first.is_hidden()
        page.keyboard.press("Tab")
        assert page.locator("a.skip:focus").is_visible()
        page.keyboard.press("Enter")
        assert page.locator("main:focus").count() == 1
        box = page.locator("html").bounding_box()
        assert box is not None
        assert box["width"] == width
        assert page.locator("figure img").first.bounding_box()["width"] <= width  # type: ignore[index]


def test_the_policy_lets_no_other_script_act_and_pictures_stay_where_vega_cannot(
    chromium: Browser, report: Path, tmp_path: Path
) -> None:
    source = report.read_text(encoding="utf-8")
    changed = source.replace("window.vegaEmbed", "window.hacked=1;window.vegaEmbed", 1)
    assert changed != source
    (tmp_path / "report.html").write_text(changed, encoding="utf-8", newline="\n")
    with opened(chromium, tmp_path / "report.html") as (page, faults):
        drawn(page, "light")
        assert page.evaluate("window.hacked") is None
        assert any("Content Security Policy" in fault for fault in faults)
        for name in FIGURES:
            assert page.locator(f"figure[data-figure={name}] img.static").is_visible(), name
        assert page.locator("#samples-count").inner_text() == "30 completions of 6 prompts"
