"""Plots: colours that agree, lines in the order of beta, and numbers that are not there."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from betaflow.config import Params
from betaflow.io import read_json
from betaflow.report.build import build
from betaflow.report.plots import (
    PLOTS,
    arm_colours,
    reward_against_kl,
    running_mean,
    win_rates,
    write_plots,
)

Workspace = Callable[..., Params]


def test_plots_hold_no_date_and_no_version(workspace: Workspace, tmp_path: Path) -> None:
    build(workspace(), tmp_path)
    for name in PLOTS:
        content = (tmp_path / "plots" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert struct.unpack(">I", content[16:20])[0] > 900
        assert b"tEXt" not in content
        assert b"tIME" not in content


def test_an_arm_has_one_colour_and_arms_differ(workspace: Workspace, tmp_path: Path) -> None:
    rows = build(workspace(), tmp_path)
    colours = arm_colours(rows)
    assert len(set(colours.values())) == len(colours) == 6
    figure = reward_against_kl(rows, "gold")
    drawn = [np.asarray(line.get_xdata()) for line in figure.axes[0].lines]
    (joined,) = (kl for kl in drawn if len(kl) == 4)
    assert (np.diff(joined) < 0).all()  # beta rises, KL falls


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
