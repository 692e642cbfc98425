"""What may be promoted."""

from __future__ import annotations

from pathlib import Path

import pytest

from betaflow.config import Params, arms
from betaflow.errors import UserError
from betaflow.io import write_json
from tasks.promote import choose


@pytest.fixture
def compared(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Params with every kind of arm; the later an arm comes, the higher its win rate."""
    monkeypatch.chdir(tmp_path)
    changes = {
        "dpo": {"beta": [0.1]},
        "ipo": {"beta": [0.1]},
        "unlikelihood": {"alpha": [0.5]},
        "best_of_n": {"n": [4]},
    }
    sections = {}
    for name, change in changes.items():
        section = getattr(params, name)
        grid = section.grid.model_copy(update=change)
        sections[name] = section.model_copy(update={"grid": grid})
    params = params.model_copy(update=sections)
    rows = [
        {"arm": arm.name, "temperature": 1.0, "win_rate_vs_sft": place / 10}
        for place, arm in enumerate(arms(params))
    ]
    write_json("out/compare/estimates.json", {"rows": rows})
    return params


@pytest.mark.parametrize(
    ("methods", "best"),
    [(["dpo"], "dpo"), (["dpo", "ipo"], "ipo"), (["unlikelihood", "sft"], "unlikelihood")],
)
def test_the_best_of_the_methods_that_may_be(
    compared: Params, methods: list[str], best: str
) -> None:
    rules = compared.promotion.model_copy(update={"methods": methods})
    assert choose(compared.model_copy(update={"promotion": rules}), None).method == best


def test_best_of_n_is_no_model_to_promote(compared: Params) -> None:
    assert choose(compared, "ipo-b0.1-lr0.0005-s0").method == "ipo"
    with pytest.raises(UserError, match="no model 'best_of_n-gold-n4' was compared"):
        choose(compared, "best_of_n-gold-n4")
