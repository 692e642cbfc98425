"""What a reader sees: progress lines, durations, the comparison."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from small_workspace import REPOSITORY

from betaflow.config import load_params
from betaflow.errors import UserError
from betaflow.report.rendered import note_rendered
from flows import comparison
from flows.display import Bars, Lines, duration, is_chatter, read_progress
from flows.graph import Stage
from flows.schedule import Slots, in_turn


def test_progress_lines_become_a_meter() -> None:
    first = read_progress("@progress dpo-b0.1 20/300 step loss=0.6 margin=0.4", None)
    assert first is not None
    assert (first.label, first.done, first.total, first.unit) == ("dpo-b0.1", 20, 300, "step")
    assert first.figures == "loss=0.6 margin=0.4"
    first.began -= 10
    second = read_progress("@progress dpo-b0.1 70/300 step loss=0.5", first)
    assert second is not None
    # 50 steps in 10 s since the first line: what a resumed stage had done before doesn't count.
    assert second.pace == "5 step/s, 46 s left"
    assert read_progress("an ordinary line", second) is None


def test_durations() -> None:
    assert [duration(s) for s in (4.2, 185, 3723)] == ["4 s", "3:05", "1:02:03"]


def test_dvcs_own_talk_is_known() -> None:
    assert is_chatter("Running stage 'dpo@0.1':")
    assert is_chatter("\tgit add dvc.lock")
    assert not is_chatter("dropped 3 pairs")


@pytest.mark.parametrize("kind", [Lines, Bars])
def test_a_display_counts_stages(kind: type[Lines]) -> None:
    text = io.StringIO()
    console = Console(file=text, width=120, force_terminal=kind is Bars, color_system=None)
    meter = read_progress("@progress a 5/10 step", None)
    assert meter is not None
    with kind(console) as display:
        display.plan(clean=3, dirty=2)
        display.started("dpo@0.1")
        meter.began -= 100
        display.progressed("dpo@0.1", meter)
        display.say("dpo@0.1 | [not markup]")
        display.finished("dpo@0.1", "done", 65)
    shown = text.getvalue()
    assert "2 stages to run, 3 up to date" in shown
    assert "[not markup]" in shown
    assert "done    dpo@0.1 in 1:05 [1/2]" in shown


def test_the_comparison_table(tmp_path: Path) -> None:
    assert comparison.read_table(tmp_path) == []
    path = tmp_path / comparison.TABLE
    path.parent.mkdir(parents=True)
    path.write_text(
        "arm,temperature,gold_reward,gold_reward_low,gold_reward_high,kl,win_rate_vs_ppo\n"
        "sft,1.0,0.1234,0.1,0.2,0.0,\n"
        "dpo-b0.1-lr0.001-s0,1.0,1.5,1.4,1.6,nan,\n"
    )
    console = Console(file=io.StringIO(), width=120)
    console.print(comparison.render(comparison.read_table(tmp_path)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0.123 [0.1, 0.2]" in shown
    assert "1.5 [1.4, 1.6]" in shown
    assert "PPO" not in shown  # nothing in that column
    assert "nan" not in shown


def test_a_table_of_other_estimates_is_rendered_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC checks the estimates out, and not the table, which holds wall time."""
    folder, calls = tmp_path / comparison.FOLDER, []
    folder.mkdir(parents=True)
    (folder / "estimates.json").write_text('{"a": 1}')

    def report(*_: object, **__: object) -> None:
        calls.append("report")
        (folder / "table.csv").write_text(f"arm\nof-{len(calls)}\n")
        note_rendered(folder, tmp_path / "out")

    monkeypatch.setattr(comparison.subprocess, "run", report)
    for _ in range(2):
        assert comparison.read_table(tmp_path) == [{"arm": "of-1"}]
    (folder / "estimates.json").write_text('{"a": 2}')
    for _ in range(2):
        assert comparison.read_table(tmp_path) == [{"arm": "of-2"}]
    (folder / "table.csv").unlink()
    assert comparison.read_table(tmp_path) == [{"arm": "of-3"}]


def test_what_closes_an_arm_goes_first_while_there_is_enough_else_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    run = load_params(REPOSITORY / "params.yaml").run
    graph = {
        name: Stage(name, (), "cpu" if name.startswith("arm") else "device")
        for name in ("arm@0", "arm@1", "arm@2", "sample@0", "sample@1")
    }
    last = {"sample@0", "sample@1"}
    first = [*sorted(last), "arm@0", "arm@1", "arm@2"]
    slots = Slots(run.model_copy(update={"jobs": 2, "gpus": 0}))  # one kind of places for all
    needed_by = {name: 1 if name in last else 3 for name in graph} | {"reward": 9}

    def turn(ready: list[str], places: Slots) -> list[str]:
        return in_turn(ready, graph, last, places, needed_by)

    assert turn(list(graph), slots) == first
    assert turn(["arm@2", *sorted(last)], slots) == ["arm@2", *sorted(last)]
    assert turn(sorted(last), slots) == sorted(last)
    apart = Slots(run.model_copy(update={"jobs": 2, "gpus": 2}))  # no arm would take a GPU
    assert turn(list(graph), apart) == list(graph)
    graph["reward"] = Stage("reward", ())  # for which many arms wait
    assert turn(["reward", *list(graph)[:5]], slots) == ["reward", *first]


def test_slots_bound_cpu_stages_and_hand_out_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_params(REPOSITORY / "params.yaml").run
    cpu = Slots(run.model_copy(update={"jobs": 1, "gpus": 0}))
    slot = cpu.take("device")
    assert slot == ("cpu", "")
    assert cpu.take("cpu") is None
    cpu.give_back(slot)
    assert cpu.take("cpu") == ("cpu", "")
    two = Slots(run.model_copy(update={"jobs": 2, "gpus": 0}))
    assert two.take("device", 4) == ("cpu", ",")  # all there are
    assert two.take("cpu") is None
    two.give_back(("cpu", ","))
    assert two.take("cpu") == ("cpu", "")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6")
    gpu = Slots(run.model_copy(update={"jobs": 1, "gpus": 2}))
    assert [gpu.take("device") for _ in range(3)] == [("device", "3"), ("device", "5"), None]
    assert gpu.take("cpu") == ("cpu", "")
    gpu.give_back(("device", "3"))
    assert gpu.take("device", 2) is None
    gpu.give_back(("device", "5"))
    assert gpu.take("device", 2) == ("device", "3,5")
    gpu.give_back(("device", "3,5"))
    assert sorted(gpu.free["device"]) == ["3", "5"]
    gpu.require(Stage("dpo", (), "device", 2))
    two.require(Stage("dpo", (), "device", 3))
    with pytest.raises(UserError, match=r"3 processes.*run\.gpus is 2"):
        gpu.require(Stage("dpo", (), "device", 3))
    with pytest.raises(UserError, match="is 4, but"):
        Slots(run.model_copy(update={"gpus": 4}))
