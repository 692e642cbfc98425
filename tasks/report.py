"""Write table.csv, table.json and report.html of `out/compare` again.

These three hold wall time, so DVC does not hash them, and a checkout from the cache leaves them
out. `compare` writes them too; this makes them from what is there, without computing anything.
"""

from __future__ import annotations

from pathlib import Path

from betaflow.config import load_params
from betaflow.report.build import render
from betaflow.report.table import console_table
from tasks._made_with import require_same
from tasks._main import run


def main() -> None:
    """Render `out/compare` and print the table."""
    params = load_params()
    require_same(params)
    folder = Path("out/compare")
    rows = render(params, folder)
    print(console_table(rows, params.compare.judge))
    print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    run(main)
