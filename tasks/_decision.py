"""What was decided about a challenger, and how version and run tell it.

What is written is true at every moment: a version says `pending` before the alias `champion` may
move to it, and `accepted` only after it did.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from betaflow.evaluation.promotion import Rule
from tasks import tracking
from tasks._model_card import rules_table
from tasks._registry import TAG, Registry

DECISION = f"{TAG}decision"
RULE, TOOK = f"{TAG}rule.", f"{TAG}judge."
LONGEST = {"tag": 5000, "description": 5000}  # characters that every registry takes
PENDING, ACCEPTED, REFUSED, NOT_MOVED = "pending", "accepted", "refused", "not moved"
ROLLED_BACK = "rolled back"


class Decision(NamedTuple):
    """What was decided about a challenger, and why.

    `against`: the model that it was compared with; `replaced`: the champion's version before, None
    where there was none or nothing was replaced.
    """

    arm: str
    model: str
    version: int
    promoted: bool
    against: str
    replaced: int | None
    rules: list[Rule]

    @property
    def sentence(self) -> str:
        """The decision in words."""
        if self.promoted:
            return f"{self.name} became champion: every rule held against {self.against}."
        failed = ", ".join(rule.name for rule in self.rules if not rule.held)
        return f"{self.name} was refused against {self.against}: {failed}."

    @property
    def name(self) -> str:
        """Which version it is about."""
        return f"{self.arm}, version {self.version} of {self.model},"

    @property
    def markdown(self) -> str:
        """The decision with its reasons."""
        verdict = "Promoted" if self.promoted else "Refused"
        return f"**{verdict}.** {self.sentence}\n\n{rules_table(self.rules)}"


def record(
    tracker: tracking.Tracker, registry: Registry, run_id: str, decision: Decision, state: str
) -> None:
    """The decision and its reasons as tags of version and run, and as the version's description.

    Args:
        state: PENDING, ACCEPTED, REFUSED or NOT_MOVED.
    """
    tags = {
        DECISION: state,
        f"{TAG}against": decision.against,
        **{f"{RULE}{rule.name}": _reason(rule) for rule in decision.rules},
    }
    registry.tag(decision.version, tags, instead_of=RULE)
    _tag_run(
        tracker.client, run_id, tags | {f"{TAG}version": str(decision.version)}, instead_of=RULE
    )
    text = _description(decision, state)
    text += f"\nThe whole model card: models:/{registry.model}/{decision.version}/README.md"
    tracker.client.update_model_version(
        registry.model, str(decision.version), text[: LONGEST["description"]]
    )


def record_usage(client: Any, run_id: str, usage: Mapping[str, object] | None) -> None:
    """What the answers of a language model took in a run's latest promotion, as the run's tags.

    Args:
        usage: fields of `Usage`; None: none was asked.
    """
    known = {name: value for name, value in (usage or {}).items() if value is not None}
    tags = {
        f"{TOOK}{name}": ", ".join(value) if isinstance(value, tuple) else str(value)
        for name, value in known.items()
    }
    _tag_run(client, run_id, tags, instead_of=TOOK)


def record_rollback(registry: Registry, was: int, sentence: str) -> None:
    """Tell of a version and of its arm's run that it was rolled back; the rules' results stay.

    Args:
        sentence: what was done, in words.
    """
    client = registry.client
    registry.tag(was, {DECISION: ROLLED_BACK})
    version = client.get_model_version(registry.model, str(was))
    _, _, rest = (version.description or "").partition("\n\n")  # after what was decided
    text = f"**Rolled back.** {sentence}\n\n{rest}"[: LONGEST["description"]]
    client.update_model_version(registry.model, str(was), text)
    if client.get_run(version.run_id).data.tags.get(f"{TAG}version") == str(was):
        client.set_tag(version.run_id, DECISION, ROLLED_BACK)  # else it is about another


def _tag_run(client: Any, run_id: str, tags: Mapping[str, str], *, instead_of: str) -> None:
    """Set tags of a run; of those that begin with `instead_of` no other stays."""
    from mlflow.entities import RunTag

    before = {key for key in client.get_run(run_id).data.tags if key.startswith(instead_of)}
    for key in before - set(tags):
        client.delete_tag(run_id, key)
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def _description(decision: Decision, state: str) -> str:
    if state in (ACCEPTED, REFUSED):
        return decision.markdown
    held = f"Every rule held against {decision.against}"
    told = {
        PENDING: f"**Pending.** {held}; the alias `champion` tells whether it became champion.",
        NOT_MOVED: f"**Not moved.** {held}, but `champion` could not be moved; promote it again.",
    }[state]
    return f"{told}\n\n{rules_table(decision.rules)}"


def _reason(rule: Rule) -> str:
    return f"{'held' if rule.held else 'failed'}: {rule.reason}"[: LONGEST["tag"]]
