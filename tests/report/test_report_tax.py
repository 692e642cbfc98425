"""lm-eval against SFT: differences by document, the tax, the section and the forest plot."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from betaflow.config import CompareSettings
from betaflow.errors import UserError
from betaflow.evaluation import paired_difference
from betaflow.report.table import tidy
from betaflow.report.tax import tax_section, taxes, with_taxes
from betaflow.report.tax_plot import has_differences, tax_alt_text, tax_figure, tax_panels

SETTINGS = CompareSettings(judge="gold", bootstrap=200, confidence=0.95, seed=0, report_samples=1)
DPO = "dpo-b0.1-lr0.001-s0"


def benchmark(
    right: list[int], wrong: list[int], preferred: list[int], scale: float = 1.0
) -> dict[str, Any]:
    """Shares (one is better the lower, one is what alignment trains for) and a perplexity."""
    loglikelihood = [[-10.0 * scale, 5.0], [-24.0 * scale, 9.0], [-8.0 * scale, 6.0]]
    results = {
        "cloze": {"acc": right, "acc_norm": right},
        "errors": {"rate": wrong},
        "betaflow_preference": {"acc": preferred},
        "text": {"word_perplexity": loglikelihood},
    }
    return {
        "results": {
            task: {name: 0.5 for name in metrics} | {f"{name}_stderr": 0.1 for name in metrics}
            for task, metrics in results.items()
        },
        "higher_is_better": {
            "cloze": {"acc": True, "acc_norm": True},
            "errors": {"rate": False},
            "betaflow_preference": {"acc": True},
            "text": {"word_perplexity": False},
        },
        "documents": {
            task: {"hash": task, "results": metrics} for task, metrics in results.items()
        },
    }


SFT = benchmark([1, 1, 1, 1, 0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0])
ARM = benchmark([1, 1, 0, 0, 0, 0, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1], scale=1.1)
BENCHMARKS = {"sft": SFT, DPO: ARM}


def document(benchmarks: dict[str, Any]) -> dict[str, Any]:
    scores = {
        name: {
            f"{task}/{metric}": value
            for task, metrics in found["results"].items()
            for metric, value in metrics.items()
        }
        for name, found in benchmarks.items()
    }
    rows = [
        {"arm": name, "method": name.split("-")[0], "scorer": None, "temperature": t, **own}
        for name, own in scores.items()
        for t in (0.0, 1.0)
    ]
    found = taxes(benchmarks, SETTINGS)
    return tidy(
        {
            "rows": with_taxes(rows, found),
            "alignment_tax": found,
            "benchmarks": {"higher_is_better": SFT["higher_is_better"]},
        }
    )


def test_differences_are_paired_and_adjusted() -> None:
    found = taxes(BENCHMARKS, SETTINGS)
    rows = {(row["task"], row["metric"]): row for row in found["rows"]}
    assert set(rows) == {
        ("cloze", "acc"),
        ("cloze", "acc_norm"),
        ("errors", "rate"),
        ("betaflow_preference", "acc"),
        ("text", "word_perplexity"),
    }
    cloze = rows["cloze", "acc"]
    alone = paired_difference(
        ARM["documents"]["cloze"]["results"]["acc"],
        SFT["documents"]["cloze"]["results"]["acc"],
        "acc",
    )
    assert (cloze["difference"], cloze["documents"]) == (-0.25, 8)
    assert (cloze["difference_low"], cloze["difference_high"]) == alone.difference[2:]
    assert cloze["p_value"] == alone.p_value
    assert all(row["adjusted"] >= row["p_value"] for row in found["rows"])
    lowest = min(found["rows"], key=lambda row: row["p_value"])
    assert lowest["adjusted"] == min(1.0, 5 * lowest["p_value"])
    assert rows["text", "word_perplexity"]["difference"] == pytest.approx(
        math.exp(46.2 / 20) - math.exp(42 / 20)
    )


def test_the_tax_is_the_mean_loss_without_what_alignment_trains_for() -> None:
    found = taxes(BENCHMARKS, SETTINGS)
    # One metric a task; perplexity is in no unit to be averaged with.
    assert found["taxed"] == [
        {"task": "cloze", "metric": "acc"},
        {"task": "errors", "metric": "rate"},
    ]
    (tax,) = found["arms"]
    assert tax["alignment_tax"] == pytest.approx((0.25 + 0.25) / 2)  # errors: more is a loss
    assert tax["alignment_tax_low"] < 0.25 < tax["alignment_tax_high"]


def test_tasks_of_the_same_documents_count_as_one() -> None:
    """Read twice, a task is not two independent ones: neither surer, nor of more weight."""
    twice = {
        name: {
            **found,
            "higher_is_better": {**found["higher_is_better"], "again": {"acc": True}},
            "documents": {**found["documents"], "again": found["documents"]["cloze"]},
        }
        for name, found in BENCHMARKS.items()
    }
    found = taxes(twice, SETTINGS)
    assert [one["task"] for one in found["taxed"]] == ["again", "cloze", "errors"]
    ends = ("alignment_tax", "alignment_tax_low", "alignment_tax_high")
    (tax,), (once,) = found["arms"], taxes(BENCHMARKS, SETTINGS)["arms"]
    assert [tax[end] for end in ends] == pytest.approx([once[end] for end in ends])


def test_columns_of_the_table() -> None:
    sft, arm = document(BENCHMARKS)["rows"][::2]
    assert sft["alignment_tax"] is None
    assert "cloze/acc_vs_sft" not in sft
    assert arm["alignment_tax"] == 0.25
    assert arm["cloze/acc_vs_sft_low"] < arm["cloze/acc_vs_sft"] < arm["cloze/acc_vs_sft_high"]
    assert 0 < arm["cloze/acc_vs_sft_p"] <= 1


@pytest.mark.parametrize(
    "benchmarks",
    [
        {"sft": {"results": {}}, DPO: {"results": {}}},  # benchmark.tasks: []
        {
            name: {key: found[key] for key in ("results", "higher_is_better")}
            for name, found in BENCHMARKS.items()
        },  # from before documents were kept
    ],
    ids=["no tasks", "no documents"],
)
def test_nothing_to_compare_is_nothing(benchmarks: dict[str, Any]) -> None:
    found = document(benchmarks)
    assert found["alignment_tax"] == {"rows": [], "taxed": [], "arms": []}
    assert all(row["alignment_tax"] is None for row in found["rows"])
    assert not has_differences(found["alignment_tax"])
    section = tax_section(found)
    if benchmarks["sft"]["results"]:
        assert section is not None
        assert section["rows"][1]["cells"][0] == {
            "value": "0.50",
            "error": "0.10",
            "change": "",
            "p": "",
        }
    else:
        assert section is None


def test_a_single_document_has_no_interval_where_nothing_tells_it() -> None:
    one = {
        name: {
            **found,
            "documents": {
                "text": {
                    "hash": "text",
                    "results": {
                        "word_perplexity": found["documents"]["text"]["results"]["word_perplexity"][
                            :1
                        ]
                    },
                }
            },
        }
        for name, found in BENCHMARKS.items()
    }
    found = document(one)
    assert found["alignment_tax"]["rows"][0]["difference_low"] is None
    assert found["alignment_tax"]["arms"] == []
    section = tax_section(found)
    assert section is not None
    assert any(cell["change"] and not cell["p"] for cell in section["rows"][1]["cells"])
    tax_figure(found)


def test_other_documents_are_refused() -> None:
    other = {**ARM, "documents": {"cloze": {"hash": "x", "results": {"acc": [1.0]}}}}
    with pytest.raises(UserError, match=r"other documents of cloze.*run again"):
        taxes({"sft": SFT, DPO: other}, SETTINGS)


def test_the_section_in_words() -> None:
    section = tax_section(document(BENCHMARKS))
    assert section is not None
    assert section["taxed"] == ["cloze (acc)", "errors (rate)"]
    assert section["left_out"] == ["betaflow_preference"]
    assert section["tests"] == 5
    assert [row["arm"] for row in section["rows"]] == ["sft", DPO]
    titles = [(column["task"], column["metric"]) for column in section["columns"]]
    assert titles[1:4] == [("cloze", "acc ↑"), ("cloze", "acc_norm ↑"), ("errors", "rate ↓")]
    arm = section["rows"][1]
    assert arm["tax"]["value"] == "25.0"
    assert arm["cells"][1]["change"].startswith("-0.25 [")
    assert arm["cells"][1]["p"].startswith("p = ")
    assert section["rows"][0]["tax"]["value"] == "–"


def test_the_forest_plot() -> None:
    found = document(BENCHMARKS)
    panels = tax_panels(found)
    assert [panel["title"].split("\n")[0] for panel in panels] == [
        "betaflow_preference",
        "cloze",
        "errors",
        "text",
        "alignment tax",
    ]
    assert [panel["axis"].split(", ")[1] for panel in panels[1:]] == ["right: better"] + 3 * [
        "right: worse"
    ]
    assert panels[-1]["axis"] == "points, right: worse"
    axes = tax_figure(found).axes
    assert len(axes) == 5
    zero, point = axes[1].lines[0], axes[1].containers[0].lines[0]
    assert set(np.asarray(zero.get_xdata())) == {0.0}
    assert np.asarray(point.get_xdata())[0] == -0.25
    tax = axes[-1].containers[0].lines[0]
    assert np.asarray(tax.get_xdata())[0] == 25.0  # points, as in the table
    assert DPO in tax_alt_text(found)
    assert "25.0 [" in tax_alt_text(found)
