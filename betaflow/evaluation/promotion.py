"""The rules by which a challenger takes a champion's place: every one of them must hold.

Each rule is a test of its own, and a challenger must pass them all, so the chance that a model
which breaks one of them is promoted is no larger than that one test's level, however many rules
there are (an intersection-union test: Berger 1982). The number of rules needs no correction; that
of the arms among which the challenger was chosen does (`simultaneous`).

What was not measured does not hold. Pure functions of numbers: a rule knows no file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

from betaflow.evaluation.bootstrap import Estimate
from betaflow.evaluation.judges import OrderEffects
from betaflow.evaluation.power import Pilot, prompts_needed

if TYPE_CHECKING:
    from betaflow.config import Arm, Method

AGAIN = "run `make align`"


class Rule(NamedTuple):
    """One rule's result: `found` and `needed` are in the rule's unit, None where there is none."""

    name: str
    held: bool
    found: float | None
    needed: float | None
    reason: str


def candidates(sweep: Iterable[Arm], methods: Collection[Method], challenger: Arm) -> list[Arm]:
    """The arms that could have been the challenger; itself among them.

    Those of `promotion.methods`, where it is of these. One of another method was named, by whatever
    was seen of the arms: then every model but SFT could have been.
    """
    named = challenger.method not in methods
    return [
        arm
        for arm in sweep
        if arm.method in methods
        or arm == challenger
        or (named and arm.has_model and arm.method != "sft")
    ]


def another_model(challenger: str | None, champion: str | None) -> Rule:
    """The challenger's weights are not the champion's.

    Args:
        challenger, champion: fingerprints of their contents; None: it has none.
    """
    if challenger is None or champion is None:
        return _missing("another_model", None, "a model has no fingerprint of its weights")
    if challenger == champion:
        return Rule("another_model", False, None, None, "The challenger is the champion itself.")
    return Rule("another_model", True, None, None, "It is another model than the champion.")


def not_rolled_back(version: int | None) -> Rule:
    """The weights were not champion and taken back.

    Args:
        version: as which they were; None: they were not.
    """
    if version is None:
        return Rule("not_rolled_back", True, None, None, "Its weights were not rolled back.")
    reason = f"Its weights were rolled back as version {version}; name the arm to promote it again."
    return Rule("not_rolled_back", False, None, None, reason)


def simultaneous(confidence: float, arms: int) -> float:
    """The confidence of each of so many intervals by which all of them hold with `confidence`.

    The challenger is chosen among several by what was measured of them, so it looks better than it
    is. By Bonferroni's inequality the chosen one's interval holds as if it alone had
    been there, whichever was chosen, and however alike the arms are.
    """
    return 1 - (1 - confidence) / arms


def wins(name: str, rate: Estimate | None, *, confidence: float) -> Rule:
    """The lower end of a win rate over the champion is above one half.

    Args:
        rate: of `win_rate` or `length_controlled_win_rate`; None: it could not be had.
        confidence: of its interval.
    """
    if rate is None or not _known(rate):
        return _missing(name, 0.5, f"no interval of the win rate could be had; {AGAIN}")
    shown = f"It wins {_percent(rate)} of the pairs ({100 * confidence:.4g}% interval)"
    if rate.low > 0.5:
        return Rule(name, True, rate.low, 0.5, f"{shown}: the lower end is above one half.")
    return Rule(name, False, rate.low, 0.5, f"{shown}: the lower end is not above one half.")


def not_worse(
    task: str,
    metric: str,
    difference: Estimate | None,
    margin: float,
    *,
    higher_is_better: bool | None,
) -> Rule:
    """Non-inferiority: on the same documents the challenger loses less than a margin.

    Args:
        difference: challenger less champion, as `paired_difference` gives it; None: no documents
            of both.
        margin: the largest loss allowed, in the metric's unit.
        higher_is_better: of the metric; where it is not, a rise is the loss. None: it is not known.
    """
    name = f"{task}/{metric}"
    if higher_is_better is None:
        why = (
            f"lm-eval does not say whether a higher {metric} of {task} is better; let the task's "
            f"`higher_is_better` say it, or leave it out by `{task}: null` in promotion.margins"
        )
        return _missing(name, -margin, why)
    if difference is None or not _known(difference):
        return _missing(name, -margin, f"not the same documents of both models; {AGAIN}")
    worst = difference.low if higher_is_better else -difference.high
    ends = f"{difference.estimate:+.3g} [{difference.low:+.3g}, {difference.high:+.3g}]"
    shown = f"Its {metric} on {task} differs by {ends}"
    if worst > -margin:
        return Rule(name, True, worst, -margin, f"{shown}: a loss of {margin:g} is ruled out.")
    return Rule(name, False, worst, -margin, f"{shown}: a loss of {margin:g} is not ruled out.")


def unpaired(task: str, metric: str, margin: float) -> Rule:
    """Non-inferiority by a metric of all documents at once, such as F1: nothing to pair.

    It does not hold, as no loss is ruled out.

    Args:
        metric: its name, or `results` where the task has none at all.
        margin: as in `not_worse`.
    """
    why = (
        f"lm-eval gives no {metric} of {task} by document, so that no loss can be ruled out; "
        f"`{task}: null` in promotion.margins leaves the task out"
    )
    return _missing(f"{task}/{metric}", -margin, why)


def nothing_measured() -> Rule:
    """Non-inferiority where no lm-eval task was run: it does not hold, as nothing tells."""
    why = "benchmark.tasks is empty; `margins: null` in promotion leaves this rule out"
    return _missing("tasks", None, why)


def within_budget(kl: Estimate | None, budget: float) -> Rule:
    """The upper end of the sequence KL from the reference is within a budget, in nats."""
    if kl is None or not _known(kl):
        return _missing("kl", budget, f"not every sample at T = 1 has a KL; {AGAIN}")
    shown = f"Its KL from the reference is {kl.estimate:.2f} [{kl.low:.2f}, {kl.high:.2f}] nats"
    held = kl.high <= budget
    verdict = "within" if held else "not within"
    return Rule("kl", held, kl.high, budget, f"{shown}: {verdict} the budget of {budget:g}.")


def enough_prompts(
    prompts: int,
    seen: Pilot | None,
    *,
    win_rate: float,
    power: float,
    confidence: float,
) -> Rule:
    """At least the prompts that show a win rate with a stated chance.

    Args:
        prompts: prompts with a verdict.
        seen: `pilot` of the verdicts; None: there are none.
        win_rate, power, confidence: as in `prompts_needed`.
    """
    if seen is None:
        return _missing("prompts", None, f"there is no verdict on any prompt; {AGAIN}")
    aim = f"a win rate of {win_rate:.0%} with chance {power:.0%}"
    if seen.ties > 4 * win_rate * (1 - win_rate):
        reason = f"{seen.ties:.1%} of its verdicts are ties, which leaves no room for {aim}."
        return Rule("prompts", False, prompts, None, reason)
    needed = prompts_needed(
        win_rate,
        completions=seen.completions,
        ties=seen.ties,
        correlation=seen.correlation,
        power=power,
        confidence=confidence,
    )
    reason = f"{prompts} prompts were judged; {needed} are needed to see {aim}."
    if prompts < needed:
        reason += " Raise sample.prompts (or sample.seeds); it takes as many held-out prompts."
    return Rule("prompts", prompts >= needed, prompts, needed, reason)


def enough_seeds(found: int, needed: int) -> Rule:
    """So many arms of the challenger's setting, apart from the seed, were trained and compared."""
    reason = f"{found} training seeds of its setting were compared; {needed} are needed."
    if found < needed:
        reason += " List more in the method's grid in params.yaml."
    return Rule("seeds", found >= needed, found, needed, reason)


def enough_verdicts(missing: float, limit: float, lost: Sequence[Estimate | None] = ()) -> Rule:
    """Few verdicts on the pairs in question are missing, and those could not have turned the win.

    A verdict need not be missing by chance: an endpoint may filter what would have lost.

    Args:
        missing: their share; NaN: there are no pairs.
        limit: the largest share allowed.
        lost: the win rates if the challenger had lost every pair without a verdict; None: one
            could not be had.
    """
    if not isfinite(missing):
        return _missing("verdicts", limit, f"there are no pairs to judge; {AGAIN}")
    reason = f"{missing:.1%} of the verdicts are missing, and {limit:.1%} may be."
    if missing > limit:
        reason += " Those that are there may not stand for the others; see docs/judges.md."
        return Rule("verdicts", False, missing, limit, reason)
    if missing == 0:
        return Rule("verdicts", True, missing, limit, reason)
    known = [rate for rate in lost if rate is not None and _known(rate)]
    if not lost or len(known) < len(lost):
        return _missing("verdicts", limit, f"no interval of the win rate could be had; {AGAIN}")
    held = all(rate.low > 0.5 for rate in known)
    ends = "still" if held else "not all"
    reason += (
        f" Were they all lost, it would win {', '.join(map(_percent, known))} of the pairs (plain, "
        f"length-controlled): the lower ends are {ends} above one half."
    )
    return Rule("verdicts", held, missing, limit, reason)


def same_in_both_orders(effects: OrderEffects) -> Rule:
    """The order of showing did not decide more of the verdicts in question than it left alone.

    Args:
        effects: of a language model's verdicts; their interval as of the judge's control `order`.
    """
    same = effects.consistency
    if not effects.pairs or not _known(same):
        return _missing("order", 0.5, f"no pair was judged in both orders; {AGAIN}")
    held = same.high >= 0.5
    shown = f"{_percent(same)} of {effects.pairs} pairs judged in both orders had one winner"
    verdict = "not below one half" if held else "the order decides more of them than the texts do"
    return Rule("order", held, same.high, 0.5, f"{shown}: {verdict}.")


def beats_a_coin(accuracy: Estimate | None) -> Rule:
    """The reward model that judges is right more often than a coin on pairs it did not learn from.

    Args:
        accuracy: on the held-out pairs; None: there are none.
    """
    if accuracy is None or not _known(accuracy):
        return _missing("accuracy", 0.5, "the reward model that judges has no held-out pairs")
    held = accuracy.low > 0.5
    shown = f"The reward model that judges is right on {_percent(accuracy)} of the held-out pairs"
    verdict = "above one half" if held else "not shown to be better than a coin"
    return Rule("accuracy", held, accuracy.low, 0.5, f"{shown}: {verdict}.")


def controls_passed(results: Mapping[str, bool | None] | None, needed: Sequence[str]) -> Rule:
    """The judge failed no control, and passed those that are needed.

    Args:
        results: by control, whether it passed (None: it could not be measured); None: the judge was
            put to none.
        needed: the controls that must have been measured.
    """
    if results is None or all(passed is None for passed in results.values()):
        return _missing("controls", None, f"the judge in use was not put to its controls; {AGAIN}")
    if failed := [name for name, passed in results.items() if passed is False]:
        reason = f"The judge failed {', '.join(failed)}: its verdicts are not to be trusted."
        return Rule("controls", False, None, None, reason)
    if lacking := [name for name in needed if results.get(name) is None]:
        why = f"the judge's controls {', '.join(lacking)}"
        if {"self", "longest"} & set(lacking):
            why += (
                "; they take draws at T = 1 by two of sample.seeds, and enough prompts to fail on"
            )
        return _missing("controls", None, why)
    return Rule("controls", True, None, None, "The judge passed its controls.")


def _missing(name: str, needed: float | None, why: str) -> Rule:
    return Rule(name, False, None, needed, f"Not measured: {why}.")


def _known(found: Estimate) -> bool:
    return all(map(isfinite, (found.estimate, found.low, found.high)))


def _percent(rate: Estimate) -> str:
    return f"{rate.estimate:.1%} [{rate.low:.1%}, {rate.high:.1%}]"
