"""Fill MLflow in from the files under `out/`, for a tracking server that was away or is new."""

from __future__ import annotations

from betaflow.config import load_params
from betaflow.report.build import render
from tasks import tracking
from tasks._made_with import require_same
from tasks._main import run
from tasks.compare import FOLDER, fill_in


def main() -> None:
    """Log every arm of the last comparison; what is there already is not logged twice."""
    params = load_params()
    require_same(params)
    rows = render(params, FOLDER)
    with tracking.reachable():
        fill_in(params, rows)
    where = tracking.server()
    print(f"MLflow holds every run; {f'they are at {where}' if where else '`make ui` shows them'}")


if __name__ == "__main__":
    run(main)
