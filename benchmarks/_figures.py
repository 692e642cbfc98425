"""From seconds and losses to the table: medians, ratios, model FLOPs utilisation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from _measure import GIB

WARM_UP = 2  # steps that are not counted
ARMS = 4  # of the sweep that is reckoned
# bf16, dense, of the SXM boards; PCIe and NVL ones of the same name are slower.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def model_flops(shape: dict[str, Any], parameters: int, lengths: list[int]) -> float:
    """Model FLOPs of training on sequences of these lengths: 6 a parameter and token, and causal
    attention (forward and backward), 6 x layers x width x length^2 a sequence.

    The projection counts at every real token, though a trainer may project completions alone, and
    the prompt twice, though it may be shared: so it is the same work for every side.
    """
    if not shape.get("tie_word_embeddings", False):
        parameters -= shape["vocab_size"] * shape["hidden_size"]  # a look-up, not a product
    heads = shape["num_attention_heads"]
    width = heads * (shape.get("head_dim") or shape["hidden_size"] // heads)
    attention = 6 * shape["num_hidden_layers"] * width
    return float(sum(6 * parameters * n + attention * n * n for n in lengths))


def figures(results: list[dict[str, Any]], tokens: list[int], work: float) -> dict[str, Any]:
    """A side's figures: of each repeat first, then the median of the repeats."""
    counted = [result["step_seconds"][WARM_UP:] for result in results]
    per_second = [sum(tokens[WARM_UP:]) / sum(seconds) for seconds in counted]
    found = {
        "step_seconds": median(statistics.median(seconds) for seconds in counted),
        "step_cpu_seconds": median(
            statistics.median(result["step_cpu_seconds"][WARM_UP:]) for result in results
        ),
        "reference_seconds": median(result["reference_seconds"] for result in results),
        "tokens_per_second": median(per_second),
        "peak_gib": median(result["peak_bytes"] / GIB for result in results),
        "before_model_gib": median(result["before_model_bytes"] / GIB for result in results),
    }
    device = results[0]["device"]
    slower = "PCIe" in device or "NVL" in device
    peak = [flops for name, flops in PEAK_FLOPS.items() if name in device and not slower]
    if peak:
        found["mfu"] = median(work / sum(seconds) / peak[0] for seconds in counted)
    return found


def against(
    side: dict[str, Any],
    runs: list[dict[str, Any]],
    ours: dict[str, Any],
    our_runs: list[dict[str, Any]],
) -> dict[str, Any]:
    """How a TRL side stands to betaflow; ratios above 1 say that betaflow takes less time."""
    steps = len(runs[0]["losses"])
    gaps = [
        abs(a - b)
        for run, our_run in zip(runs, our_runs, strict=True)
        for a, b in zip(run["losses"], our_run["losses"], strict=True)
    ]
    sweep = ours["reference_seconds"] + ARMS * steps * ours["step_seconds"]
    training = ARMS * steps * side["step_seconds"]
    return {
        "loss_difference": max(gaps),
        "step_ratio": side["step_seconds"] / ours["step_seconds"],
        "sweep_ratio": (ARMS * side["reference_seconds"] + training) / sweep,
        "sweep_ratio_cached": (side["reference_seconds"] + training) / sweep,
    }


def median(values: Any) -> float:
    return float(statistics.median(values))


ROWS = (
    ("s an optimizer step (median)", "step_seconds", "{:.3f}"),
    ("  its processor time, s", "step_cpu_seconds", "{:.3f}"),
    ("reference pass over the pairs, s", "reference_seconds", "{:.2f}"),
    ("real tokens/s", "tokens_per_second", "{:,.0f}"),
    ("peak memory, GiB", "peak_gib", "{:.2f}"),
    ("  of it before the model, GiB", "before_model_gib", "{:.2f}"),
    ("model FLOPs utilisation", "mfu", "{:.1%}"),
    ("largest difference in loss", "loss_difference", "{:.1e}"),
    ("step ratio to betaflow", "step_ratio", "{:.2f}"),
    ("sweep of four arms, ratio", "sweep_ratio", "{:.2f}"),
    ("  TRL's reference pass once, too", "sweep_ratio_cached", "{:.2f}"),
)


def show(table: dict[str, dict[str, Any]], rows: Sequence[tuple[str, str, str]] = ROWS) -> None:
    """Print the table, one column a side; a row is its title, its key and its format."""
    print(f"{'':36}" + "".join(f"{side:>15}" for side in table))
    for title, key, form in rows:
        if any(key in side for side in table.values()):
            cells = (form.format(side[key]) if key in side else "" for side in table.values())
            print(f"{title:36}" + "".join(f"{cell:>15}" for cell in cells))
