"""Numbers and foreign text, made fit for a page.

Prompts and completions are whatever the data and the models say. Jinja escapes their markup;
here what a browser would hide or obey without being markup is made visible.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from math import floor, log10
from typing import Any

from betaflow.report.estimates import Row

# Line and paragraph separators, and the marks that reorder the text around them (Trojan Source).
DISGUISES = set(
    "\u2028\u2029\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
DASH = "–"


def visible(text: str) -> str:
    r"""Text with control characters shown as `\x1b` or `\u202e`; newlines and tabs stay."""
    return "".join(_visible(character) for character in text.replace("\r\n", "\n"))


def _visible(character: str) -> str:
    if character in "\n\t":
        return character
    if character in DISGUISES or unicodedata.category(character) in ("Cc", "Cs", "Cn"):
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character


def number(value: float | None, digits: int) -> str:
    """A number with `digits` decimals and thousands apart; a dash where there is none."""
    return DASH if value is None else f"{value:,.{digits}f}"


def estimate(row: Row, name: str, digits: int, scale: float = 1.0) -> dict[str, str]:
    """`value` and `interval` of a row's estimate, as texts."""
    value, low, high = row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high")
    if value is None:
        return {"value": DASH, "interval": ""}
    text = number(value * scale, digits)
    if low is None or high is None or low == high:  # one arm against itself: by definition
        return {"value": text, "interval": ""}
    return {
        "value": text,
        "interval": f"[{number(low * scale, digits)}, {number(high * scale, digits)}]",
    }


def decimals(spread: float) -> int:
    """The decimals that show a standard error, or half an interval, to two significant digits."""
    return 1 if spread <= 0 else max(0, 1 - floor(log10(spread)))


def on_a_line(row: Row, name: str, digits: int, scale: float = 1.0, unit: str = "") -> str:
    """A row's estimate with its unit and its interval."""
    found = estimate(row, name, digits, scale)
    return f"{found['value']}{unit} {found['interval']}".strip()


def significant(value: float | None) -> str:
    """A number to four significant digits."""
    return DASH if value is None else f"{value:.4g}"


def power(value: float | None) -> str:
    """A large number to two significant digits, as `1.3e+14`."""
    return DASH if value is None else f"{value:.1e}"


def counted(facts: Mapping[str, Any], *path: str) -> Any:
    """`facts[path[0]][path[1]]...`, None where it is not there."""
    found: Any = facts
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
