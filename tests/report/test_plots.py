"""Plots: colours that agree, lines in the order of beta, and numbers that are not there."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from betaflow.config import Arm, Method, Params
from betaflow.io import read_json
from betaflow.report.build import build
from betaflow.report.methods import LABELS, LOOKS, colours, label, setting, trials
from betaflow.report.plots import (
    CURVES,
    alt_texts,
    reward_against_kl,
    running_mean,
    sweeps,
    titles,
    win_rates,
    write_plots,
)
from betaflow.report.reward_plot import reward_model_figure

Workspace = Callable[..., Params]


def test_plots_hold_no_date_and_no_version(workspace: Workspace, tmp_path: Path) -> None:
    build(workspace(), tmp_path)
    for name in titles(read_json(tmp_path / "estimates.json")):
        content = (tmp_path / "plots" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert struct.unpack(">I", content[16:20])[0] > 900
        assert b"tEXt" not in content
        assert b"tIME" not in content


def test_an_arm_has_one_colour_and_arms_differ(workspace: Workspace, tmp_path: Path) -> None:
    rows = build(workspace(), tmp_path)
    shades = colours(rows)
    assert len(set(shades.values())) == len(shades) == 6
    figure = reward_against_kl(rows, "gold")
    drawn = [np.asarray(line.get_xdata()) for line in figure.axes[0].lines]
    (joined,) = (kl for kl in drawn if len(kl) == 4)
    assert (np.diff(joined) < 0).all()  # beta rises, KL falls


def test_arms_are_joined_along_the_dial_of_their_method() -> None:
    def arm(method: str, beta: float, target_kl: float | None = None) -> dict[str, Any]:
        at = {"learning_rate": 1e-3, "seed": 0, "kl": 1.0, "scorer": None}
        return {"method": method, "beta": beta, "target_kl": target_kl, **at}

    def dials(*rows: dict[str, Any]) -> list[list[tuple[float, float | None]]]:
        return [[(row["beta"], row["target_kl"]) for row in line] for line in sweeps(rows)]

    assert dials(arm("dpo", 0.3), arm("dpo", 0.1)) == [[(0.1, None), (0.3, None)]]
    fixed = [arm("ppo", 0.2, 0.0), arm("ppo", 0.1, 0.0)]
    aimed = [arm("ppo", 0.2, 3.0), arm("ppo", 0.2, 1.0), arm("ppo", 0.1, 2.0)]
    assert dials(*fixed, *aimed) == [
        [(0.1, 0.0), (0.2, 0.0)],
        [(0.2, 1.0), (0.2, 3.0)],
        [(0.1, 2.0)],
    ]
    assert dials(arm("sft", 0.0), arm("dpo", 0.1) | {"kl": None}) == []


# What is left of linear red, green and blue (Machado et al. 2009, severity 1), by row.
SIGHT = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(linear: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear sRGB, in which equal distances look about equally far."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ linear.clip(0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_methods_are_told_apart_by_every_reader(sight: str) -> None:
    seen = {}
    for name, look in LOOKS.items():
        srgb = np.array(to_rgb(look.first))
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        seen[name] = lab(np.array(SIGHT[sight]) @ linear)
    for (one, here), (other, there) in combinations(seen.items(), 2):
        assert np.linalg.norm(here - there) > 20, (one, other)
    assert len({look.marker for look in LOOKS.values()}) == len(LOOKS)


def test_every_method_has_a_name_a_look_and_a_legend_entry(
    workspace: Workspace, tmp_path: Path
) -> None:
    rows = build(workspace(every_method=True, prompts=12), tmp_path)
    assert set(LABELS) == set(get_args(Method)) == {row["method"] for row in rows}
    assert {label(row) for row in rows} == set(LOOKS)
    assert set(CURVES) == set(LABELS) - {"sft", "best_of_n"}
    figure = reward_against_kl(rows, "gold")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(LOOKS)
    joined = [line for line in figure.axes[0].lines if len(np.asarray(line.get_xdata())) == 2]
    assert len(joined) >= 5  # DPO, IPO, SLiC and both of Best-of-N
    words = {row["arm"]: f"{label(row)}: {setting(row)}" for row in rows}
    assert words["dpo-b0.1-lr0.001-s0"] == "DPO: β = 0.1"
    assert words["unlikelihood-a0-lr0.001-s0"] == "Preferred-FT: "
    assert words["unlikelihood-a0.5-lr0.001-s0"] == "Unlikelihood: α = 0.5"
    assert words["ppo_gt-b0.1-kl6-lr0.0003-s0"] == "PPO-GT: β = 0.1, target KL = 6"
    assert words["best_of_n-gold-n16"] == "Best-of-N (gold): n = 16"


def test_missing_numbers_are_left_out(workspace: Workspace, tmp_path: Path) -> None:
    build(workspace(), tmp_path)
    document = read_json(tmp_path / "estimates.json")
    for row in document["rows"][3:]:
        for name in [n for n in row if n.startswith(("kl", "win_rate_vs_ppo"))]:
            row[name] = None
    document["rows"] = [row for row in document["rows"] if row["temperature"] == 1.0]
    write_plots(document, {}, tmp_path / "plots")  # no metrics, one temperature
    assert len(win_rates(document["rows"], None).axes) == 1


def test_running_mean() -> None:
    np.testing.assert_allclose(running_mean(np.array([1.0, 2.0, 6.0]), 1), [1.5, 3.0, 4.0])
    assert len(running_mean(np.array([]), 1)) == 0


def test_the_reward_model_s_calibration_is_drawn_where_there_are_held_out_pairs(
    workspace: Workspace, tmp_path: Path
) -> None:
    build(workspace(), tmp_path)
    found = read_json(tmp_path / "estimates.json")
    assert found["reward_model"]["pairs"] == 60
    left, right = reward_model_figure(found["reward_model"]).axes
    points = left.containers[0].lines[0].get_xydata()
    expected = [(b["confidence"], b["accuracy"]) for b in found["reward_model"]["bins"]]
    assert [tuple(point) for point in points] == expected
    assert sum(bar.get_height() for bar in right.patches) == 60
    assert "60 held-out pairs" in alt_texts(found)["reward_model"]
    build(workspace(held_out=0), tmp_path)
    found = read_json(tmp_path / "estimates.json")
    assert found["reward_model"] is None
    assert "reward_model" not in titles(found) | alt_texts(found)


def test_seeds_are_no_tuning_trials() -> None:
    sweep = [
        Arm(method="dpo", beta=beta, learning_rate=rate, seed=seed)
        for beta in (0.1, 1.0)
        for rate in (1e-6, 1e-5, 1e-4)
        for seed in (0, 1)
    ]
    sweep += [Arm(method="ppo", beta=0.1, target_kl=kl, seed=0) for kl in (0, 6)]
    assert trials(sweep) == {"dpo": 6, "ppo": 2}
