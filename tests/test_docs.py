"""The documentation points at code and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from betaflow.config import TEMPLATES, LLMSettings
from betaflow.objectives.dpo import LOSSES, USED_BY

# A relative link, and what follows it up to the next link, item, table cell or paragraph.
LINK = re.compile(r"\[[^\]]*\]\((?!https?:)([^)#\s]+)\)((?:(?!\n\n|\n- |\n#)[^\[|])*)")


@pytest.fixture
def page(repository: Path) -> Path:
    return repository / "docs" / "derivation.md"


def names_after_links(text: str) -> list[tuple[str, list[str]]]:
    """Each relative link's path and the names in backticks that follow it."""
    without_inline_maths = re.sub(r"\$`[^`]*`\$", "", text)
    return [
        (path, re.findall(r"`(\w+)`", after)) for path, after in LINK.findall(without_inline_maths)
    ]


def names_in(path: Path) -> set[str]:
    """What a module defines at its top level."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_names_are_found_after_their_link() -> None:
    text = "`no` [a](../a.py) `f`, $`x`$\n  `g`; [b](b.py) h\n- [c](https://c.d) `i`\n\n`j`"
    assert names_after_links(text) == [("../a.py", ["f", "g"]), ("b.py", [])]


@pytest.mark.parametrize(
    ("name", "links"),
    [
        ("derivation.md", 20),
        ("training.md", 20),
        ("judges.md", 8),
        ("statistics.md", 8),
        ("report.md", 5),
        ("promotion.md", 7),
        ("ppo.md", 5),
        ("frontier.md", 3),
        ("unlabelled.md", 3),
    ],
)
def test_every_link_and_every_name_after_it_exists(repository: Path, name: str, links: int) -> None:
    page = repository / "docs" / name
    text = page.read_text()
    found = [link for link in names_after_links(text) if link[0].startswith("../")]
    assert len(found) == text.count("](../") > links  # none was missed
    for path, names in found:
        target = (page.parent / path).resolve()
        assert target.is_file(), path
        assert names, f"{path}: the link names nothing in it"
        assert set(names) <= names_in(target), path


def pages_of(repository: Path) -> list[Path]:
    names = ("README.md", "CHANGELOG.md", "data/README.md", "benchmarks/README.md")
    return [*(repository / name for name in names), *sorted((repository / "docs").glob("*.md"))]


def links_of(text: str) -> list[tuple[str, str]]:
    """Path and heading of each link within the repository, `[a](path#heading)` or `[a]: path`."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    inline = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"\$`[^`]*`\$", "", without_code))
    named = re.findall(r"^\[[^\]]+\]: (\S+)$", without_code, re.MULTILINE)
    links = [link for link in (*inline, *named) if not re.match(r"\w+:", link)]
    return [(path, heading) for path, _, heading in (link.partition("#") for link in links)]


def test_links_are_found_in_both_forms_and_not_in_code() -> None:
    text = "![a](b.png) [`c`](../d.md#e) [f](#g) [h](https://i.j) $`[k](l)`$\n"
    text += "```\n[m](n)\n```\n[o]: p.md"
    assert links_of(text) == [("b.png", ""), ("../d.md", "e"), ("", "g"), ("p.md", "")]


def test_every_link_to_a_file_or_a_heading_has_one(repository: Path) -> None:
    pages = pages_of(repository)
    headings = {page: {anchor(line) for line in page.read_text().split("\n")} for page in pages}
    broken, found = [], 0
    for page in pages:
        for path, name in links_of(page.read_text()):
            found += 1
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (name and name not in headings.get(target, ())):
                broken.append(f"{page.relative_to(repository)}: {path}#{name}")
    assert not broken
    assert found >= 200


def anchor(line: str) -> str:
    """What a heading is linked by; of other lines nothing that a link names."""
    title = line.lstrip("#").strip().lower() if line.startswith("#") else ""
    return re.sub(r"[^\w\- ]", "", title).replace(" ", "-")


def test_every_equation_is_followed_by_its_code_and_its_test(page: Path) -> None:
    """`$$` opens and closes each; the paragraphs after it, up to the next, link to both."""
    _, *rest = page.read_text().split("\n$$\n")
    after = rest[1::2]
    assert len(after) >= 9
    for text in after:
        for kind in ("Code", "Test"):
            assert re.search(rf"^- {kind}: ", text, re.MULTILINE), text


def test_the_table_of_losses_is_that_of_the_code(page: Path) -> None:
    """Every loss, with the options that it uses."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|", page.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == list(LOSSES)
    for name, options in rows:
        used = {option for option, losses in USED_BY.items() if name in losses}
        if name == "simpo":
            used.remove("length_normalised")  # always: no option to it
        assert set(re.findall(r"`(\w+)`", options)) == used, name


def test_the_example_of_an_endpoint_is_valid_and_explained(repository: Path) -> None:
    text = (repository / "docs" / "judges.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    found = yaml.safe_load(block)["compare"]
    assert found["judge"] == "llm"
    assert set(found["llm"]) == set(LLMSettings.model_fields)
    LLMSettings(**found["llm"])
    assert all("#" in line for line in block.splitlines()[3:])
    assert all(name in block for name in TEMPLATES)
