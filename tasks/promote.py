"""Judging a challenger by the rules of `promotion`, registering it, and moving `champion`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from betaflow.config import Arm, Params, arms
from betaflow.errors import UserError
from betaflow.evaluation.promotion import Rule
from betaflow.io import read_json
from betaflow.report.estimates import Row
from tasks import tracking
from tasks._decision import (
    ACCEPTED,
    DECISION,
    NOT_MOVED,
    PENDING,
    REFUSED,
    ROLLED_BACK,
    Decision,
    record,
    record_usage,
)
from tasks._evidence import of_arm, of_version
from tasks._model_card import model_card
from tasks._registry import CHALLENGER, CHAMPION, CONTENT, ChampionChanged, Registry, Version
from tasks._rules import judged_against, rules
from tasks._versions import register


def choose(params: Params, name: str | None) -> Arm:
    """The named arm, or the one with the highest `promotion.metric` among its methods."""
    settings = params.promotion
    rows = {
        row["arm"]: row
        for row in read_json("out/compare/estimates.json")["rows"]
        if row["temperature"] == settings.temperature
    }
    if not rows:
        raise UserError(
            f"promotion.temperature is {settings.temperature}, at which nothing was sampled; "
            "choose one of sample.temperatures"
        )
    if settings.metric not in next(iter(rows.values())):
        raise UserError(
            f"promotion.metric {settings.metric!r} is no column of out/compare/table.csv"
        )
    known = {arm.name: arm for arm in arms(params) if arm.name in rows and arm.has_model}
    if name is not None:
        if name not in known:
            raise UserError(f"no model {name!r} was compared; there are {', '.join(known)}")
        return known[name]
    values = {
        arm.name: rows[arm.name][settings.metric]
        for arm in known.values()
        if arm.method in settings.methods and rows[arm.name][settings.metric] is not None
    }
    if not values:
        raise UserError("no arm of promotion.methods has a value of promotion.metric")
    return known[max(values, key=lambda arm: values[arm])]


def promote_arm(params: Params, name: str | None = None) -> Decision:
    """Judge the chosen arm against the champion, or SFT; register it; make it champion if it may.

    The version is whole, tagged and described before `champion` moves, which is the one step that
    decides: a promotion that is cut off before it leaves the old champion in place.

    Raises:
        UserError: there is nothing to judge, or what was compared is not what is there now.
    """
    arm = choose(params, name)
    summary = read_json(arm.model_dir / "summary.json")
    rows = _compared(arm, summary)
    tracker = tracking.Tracker(params)
    registry = Registry(tracker.client, params.run.registered_model)
    champion = registry.holder(CHAMPION)
    versions = registry.versions()
    if champion is None:
        _require_never_one(registry, versions)
    challenger = of_arm(arm)
    rolled_back = None if name else _rolled_back(versions, challenger.content)
    other = of_version(params, registry, champion) if champion else of_arm(Arm(method="sft"))
    verdicts, usage = judged_against(params, challenger, other)
    found = rules(params, arm, challenger, other, verdicts, rolled_back)
    run_id = tracker.arm_run(summary).info.run_id
    record_usage(tracker.client, run_id, usage)
    card = partial(model_card, params, arm, summary, rows, found, other.name)
    version = register(params, registry, arm, run_id, summary, challenger, card)
    passed = all(rule.held for rule in found)
    before = None if champion is None else champion.number
    decision = Decision(
        arm.name,
        registry.model,
        version,
        passed,
        other.name,
        before if passed else None,
        found,
    )
    try:
        record(tracker, registry, run_id, decision, PENDING if passed else REFUSED)
        tracker.client.set_registered_model_alias(registry.model, CHALLENGER, str(version))
        return _moved(tracker, registry, run_id, decision, before) if passed else decision
    finally:
        registry.release(version)


def _require_never_one(registry: Registry, versions: list[Version]) -> None:
    """Stop where the champion was lost: SFT would stand in for it, which is easier to beat."""
    was = [one.number for one in versions if one.tags.get(DECISION) == ACCEPTED]
    if was:
        raise UserError(
            f"{registry.model} has no champion, though version {was[0]} was one: give it the alias "
            f"`{CHAMPION}` again in MLflow, or begin anew under another run.registered_model"
        )


def _rolled_back(versions: list[Version], content: str | None) -> int | None:
    """The version as which these weights were rolled back, if they were not accepted since."""
    for one in versions:
        if content is not None and one.tags.get(CONTENT) == content:
            if one.tags.get(DECISION) == ROLLED_BACK:
                return one.number
            if one.tags.get(DECISION) == ACCEPTED:
                return None
    return None


def _moved(
    tracker: tracking.Tracker,
    registry: Registry,
    run_id: str,
    decision: Decision,
    before: int | None,
) -> Decision:
    """Make the version champion, and record what came of it; the decision as it then stands.

    Once the alias has moved the decision stands, whatever MLflow fails at after that.
    """
    from mlflow.exceptions import MlflowException

    try:
        registry.move_champion(decision.version, instead_of=before)
    except ChampionChanged as error:
        changed = Rule("same_champion", False, None, None, f"{error}.")
        decision = decision._replace(
            promoted=False, replaced=None, rules=[*decision.rules, changed]
        )
        # The one that was quicker may have taken the alias away, if it came to be challenger later.
        tracker.client.set_registered_model_alias(registry.model, CHALLENGER, str(decision.version))
        record(tracker, registry, run_id, decision, REFUSED)
        return decision
    except Exception:
        moved = False
        # Of a registry that is away `pending` stays, which claims no more than is known.
        with suppress(MlflowException):
            champion = registry.holder(CHAMPION)
            moved = champion is not None and champion.number == decision.version
            if not moved:
                record(tracker, registry, run_id, decision, NOT_MOVED)
        if not moved:
            raise
    try:
        record(tracker, registry, run_id, decision, ACCEPTED)
    except MlflowException as error:
        tracking.tell(f"{decision.sentence} But MLflow did not record it ({error})")
    return decision


def _compared(arm: Arm, summary: Mapping[str, Any]) -> list[Row]:
    """The arm's rows of the comparison. Stops if its model is not the one that was compared."""
    compared = read_json("out/compare/estimates.json")
    if compared["fingerprints"][arm.name] != summary["fingerprint"]:
        raise UserError(f"{arm.name} was trained again after the comparison; run `make align`")
    return [row for row in compared["rows"] if row["arm"] == arm.name]


if __name__ == "__main__":
    raise SystemExit("use `make promote`, or `python -m flows.promote` (with `--help`)")
