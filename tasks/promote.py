"""Judging a challenger by the rules of `promotion`, registering it, and moving `champion`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from betaflow.config import Arm, Params, arms
from betaflow.errors import UserError
from betaflow.evaluation.promotion import Rule
from betaflow.io import read_json
from betaflow.report.estimates import Row
from tasks import tracking
from tasks._evidence import of_arm, of_version
from tasks._model_card import model_card, rules_table
from tasks._registry import CHALLENGER, CHAMPION, TAG, ChampionChanged, Registry
from tasks._rules import rules
from tasks._versions import register

RULE = f"{TAG}rule."
LONGEST = {"tag": 5000, "description": 5000}  # characters that every registry takes


class Decision(NamedTuple):
    """What was decided about a challenger, and why.

    `against`: the model that it was compared with; `replaced`: the champion's version before, None
    where there was none or nothing was replaced; `value`: of `metric`, None if not measured.
    """

    arm: str
    model: str
    version: int
    promoted: bool
    against: str
    replaced: int | None
    metric: str
    value: float | None
    rules: list[Rule]

    @property
    def sentence(self) -> str:
        """The decision in words."""
        name = f"{self.arm}, version {self.version} of {self.model},"
        if self.promoted:
            return f"{name} is champion: every rule held against {self.against}."
        failed = ", ".join(rule.name for rule in self.rules if not rule.held)
        return f"{name} was refused against {self.against}: {failed}."

    @property
    def markdown(self) -> str:
        """The decision with its reasons."""
        verdict = "Promoted" if self.promoted else "Refused"
        return f"**{verdict}.** {self.sentence}\n\n{rules_table(self.rules)}"


def choose(params: Params, name: str | None) -> tuple[Arm, float | None]:
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
        return known[name], rows[name][settings.metric]
    values = {
        arm.name: rows[arm.name][settings.metric]
        for arm in known.values()
        if arm.method in settings.methods and rows[arm.name][settings.metric] is not None
    }
    if not values:
        raise UserError("no arm of promotion.methods has a value of promotion.metric")
    best = max(values, key=lambda arm: values[arm])
    return known[best], values[best]


def promote_arm(params: Params, name: str | None = None) -> Decision:
    """Judge the chosen arm against the champion, or SFT; register it; make it champion if it may.

    The version is whole, tagged and described before `champion` moves, which is the one step that
    decides: a promotion that is cut off before it leaves the old champion in place.

    Raises:
        UserError: there is nothing to judge, or what was compared is not what is there now.
    """
    arm, value = choose(params, name)
    summary = read_json(arm.model_dir / "summary.json")
    rows = _compared(arm, summary)
    tracker = tracking.Tracker(params)
    registry = Registry(tracker.client, params.run.registered_model)
    champion = registry.holder(CHAMPION)
    challenger = of_arm(arm)
    other = of_version(params, registry, champion) if champion else of_arm(Arm(method="sft"))
    found = rules(params, arm, challenger, other)
    run_id = tracker.arm_run(summary).info.run_id
    card = model_card(params, arm, summary, rows, found, other.name)
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
        params.promotion.metric,
        value,
        found,
    )
    tracker.client.set_registered_model_alias(registry.model, CHALLENGER, str(version))
    _record(tracker, registry, run_id, decision)
    if passed:
        try:
            registry.move_champion(version, instead_of=before)
        except ChampionChanged as error:
            decision = _overtaken(decision, error)
            tracker.client.set_registered_model_alias(registry.model, CHALLENGER, str(version))
            _record(tracker, registry, run_id, decision)
    return decision


def _overtaken(decision: Decision, error: ChampionChanged) -> Decision:
    changed = Rule("same_champion", False, None, None, f"{error}.")
    return decision._replace(promoted=False, replaced=None, rules=[*decision.rules, changed])


def _compared(arm: Arm, summary: Mapping[str, Any]) -> list[Row]:
    """The arm's rows of the comparison. Stops if its model is not the one that was compared."""
    compared = read_json("out/compare/estimates.json")
    if compared["fingerprints"][arm.name] != summary["fingerprint"]:
        raise UserError(f"{arm.name} was trained again after the comparison; run `make align`")
    return [row for row in compared["rows"] if row["arm"] == arm.name]


def _record(tracker: tracking.Tracker, registry: Registry, run_id: str, decision: Decision) -> None:
    """The decision and its reasons as tags of version and run, and as the version's description."""
    from mlflow.entities import RunTag

    tags = {
        f"{TAG}decision": "accepted" if decision.promoted else "refused",
        f"{TAG}against": decision.against,
        **{f"{RULE}{rule.name}": _reason(rule) for rule in decision.rules},
    }
    registry.tag(decision.version, tags, instead_of=RULE)
    client = tracker.client
    every = tags | {f"{TAG}version": str(decision.version)}
    for key in {key for key in client.get_run(run_id).data.tags if key.startswith(RULE)} - set(
        every
    ):
        client.delete_tag(run_id, key)
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in every.items()])
    text = decision.markdown + f"\nThe whole model card: README.md among the artifacts of {run_id}."
    client.update_model_version(
        registry.model, str(decision.version), text[: LONGEST["description"]]
    )


def _reason(rule: Rule) -> str:
    return f"{'held' if rule.held else 'failed'}: {rule.reason}"[: LONGEST["tag"]]
