"""Which estimates table.csv, table.json and report.html are of.

DVC does not hash those three, so where it checks out another comparison they stay as they were.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from betaflow.io import LOCAL, read_json, write_json

ESTIMATES = "estimates.json"
RENDERED = "rendered.json"  # below `out/.local`


def note_rendered(folder: Path, out: Path) -> None:
    """Keep what the files in `folder` were rendered of, apart from what DVC tracks."""
    write_json(out / LOCAL.name / RENDERED, {"estimates": _digest(folder / ESTIMATES)})


def is_rendered(folder: Path, out: Path) -> bool:
    """Whether the table in `folder` is of the estimates beside it."""
    kept = out / LOCAL.name / RENDERED
    if not (folder / "table.csv").exists() or not kept.exists():
        return False
    told: str = read_json(kept)["estimates"]
    return told == _digest(folder / ESTIMATES)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
