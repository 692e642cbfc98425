"""A page read as a browser would read it, for tests."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags with their attributes, the text, and apart from it the style and the scripts.

    `scripts` by their id; those that act have none, and are known by their number.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = self.style = ""
        self.scripts: dict[str, str] = {}
        self.inside = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            number = sum(name.isdigit() for name in self.scripts) + 1
            self.script = str(dict(attrs).get("id") or number)
            self.scripts[self.script] = ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[self.script] += data
        elif self.inside == "style":
            self.style += data
        else:
            self.text += data
