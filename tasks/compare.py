"""Stage `compare`: every arm in one table, plots and report -> out/compare; MLflow filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from betaflow.config import Params, arms, load_params
from betaflow.errors import UserError
from betaflow.io import atomic_directory, read_json, read_jsonl
from betaflow.report.build import IDENTITY, build, render
from betaflow.report.power import sentence
from tasks import tracking
from tasks._main import forget_checkpoints, run

FOLDER = Path("out/compare")
JUDGED = Path("out/judgements/summary.json")
# Of what a language model's answers took, MLflow has:
TOOK = ("answers", "prompt_tokens", "completion_tokens", "unreported", "spend")
# What MLflow has of every temperature, under names such as `win_rate_vs_sft_T0.5`.
BY_TEMPERATURE = ("gold_reward", "reward_model", "win_rate", "lc_win_rate", "completion_tokens")


def main() -> None:
    """Estimate, draw, write; then bring every arm's MLflow run up to date."""
    params = load_params()
    forget_checkpoints("reward")
    with atomic_directory(FOLDER) as folder:
        build(params, folder)
        rows = render(params, folder)
    print(f"{len(rows)} rows: {FOLDER}/table.csv; report: {FOLDER}/report.html")
    print(sentence(read_json(FOLDER / "estimates.json")["power"]))
    try:
        fill_in(params, rows)
    except UserError:
        raise
    except Exception as error:  # the comparison stands without a tracking server
        tracking.warn(error)


def fill_in(params: Params, rows: list[dict[str, Any]]) -> None:
    """Log each arm's final numbers, and whatever of its steps no run holds yet."""
    tracker = tracking.Tracker(params)
    folders = {"reward": Path("out/reward")}
    folders |= {arm.name: arm.model_dir for arm in arms(params) if arm.has_model}
    summaries = [read_json(folder / "summary.json") for folder in folders.values()]
    summaries += [tracking.summary_without_model(arm) for arm in arms(params) if not arm.has_model]
    for about in summaries:
        folder = folders.get(about["arm"])
        arm_run = tracker.arm_run(about)
        tracker.describe(arm_run, about)
        steps = [] if folder is None else read_jsonl(folder / "metrics.jsonl")
        if int(arm_run.data.tags.get(tracking.TAG + "steps_logged", 0)) < len(steps):
            tracker.log_steps(arm_run, steps)
            tracker.client.set_tag(
                arm_run.info.run_id, tracking.TAG + "steps_logged", str(len(steps))
            )
        mine = [row for row in rows if row["arm"] == about["arm"]]
        tracker.log_compared(arm_run, about["metrics"], _final(mine, params), len(steps))
        tracker.client.set_terminated(arm_run.info.run_id, "FINISHED")
        if mine and folder is not None:
            tracker.external_model(arm_run, about, folder)
    _log_judge(tracker)
    _publish(tracker)


def _log_judge(tracker: tracking.Tracker) -> None:
    """Put the judge, what its answers took and the controls it failed on the sweep's run."""
    about = read_json(JUDGED)
    usage = about["usage"] or {}
    took = {f"judge/{name}": usage[name] for name in TOOK if name in usage}
    run_id = tracker.sweep_run.info.run_id
    tags = {
        "judge": about["model"] or about["judge"],
        "controls_failed": ", ".join(about["controls"]["failed"]) or "none",
    }
    tracker.log_final(tracker.sweep_run, took, 0)
    for name, value in tags.items():
        tracker.client.set_tag(run_id, tracking.TAG + name, value)


def _final(rows: list[dict[str, Any]], params: Params) -> dict[str, float]:
    """An arm's numbers at the temperature that promotion reads, and at each under its own name."""
    found: dict[str, float] = {}
    for row in rows:
        for key, value in row.items():
            if key in IDENTITY or value is None:
                continue
            if row["temperature"] == params.promotion.temperature or key.startswith("optimum_"):
                found[key] = value
            if key.startswith(BY_TEMPERATURE):
                found[f"{key}_T{row['temperature']:g}"] = value
    return found


def _publish(tracker: tracking.Tracker) -> None:
    """Hang the report, the table and the plots on the sweep's run."""
    run_id = tracker.sweep_run.info.run_id
    tracker.stamp(tracker.sweep_run)
    for name in ("report.html", "table.csv", "table.json", "pairwise.csv"):
        tracker.client.log_artifact(run_id, str(FOLDER / name))
    tracker.client.log_artifacts(run_id, str(FOLDER / "plots"), "plots")
    tracker.client.set_terminated(run_id, "FINISHED")


if __name__ == "__main__":
    run(main)
