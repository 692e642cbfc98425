"""A language model as the judge: each pair is shown in both orders, every answer is kept on disk.

The preference is the mean over both orders, so a model that changes its mind with the order says
one half. Two completions that are the same text get one half without being asked about: that is
what both orders of one question come to.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from betaflow.evaluation.endpoint import Answer, Body, Sleep, ask, read_key
from betaflow.evaluation.judges import PAIR, VERDICT
from betaflow.evaluation.templates import question, read_template, read_verdict
from betaflow.io import write_json
from betaflow.progress import track

if TYPE_CHECKING:
    from betaflow.config import LLMSettings

MILLION = 1_000_000
BROKEN_OFF = {"length": "cut at max_tokens", "content_filter": "content filter"}
Found = tuple[str, str]  # a letter, or why there is none


class Usage(NamedTuple):
    """What answers took, kept ones included: of the same pairs always the same."""

    answers: int
    prompt_tokens: int
    completion_tokens: int
    unreported: int  # answers whose tokens the endpoint did not tell
    spend: float | None  # in the currency of the prices; None without prices
    models: tuple[str, ...]  # that answered, by the endpoint's account


class LLMJudge:
    """The judge that `compare.llm` in params.yaml describes; see `betaflow.evaluation.judges`.

    Answers are kept in the folder `kept`, one file each, by a hash of what was sent: model,
    messages and sampling options. The address is not part of it, so that a server can move: two
    models must not share a name. The key is in no file.

    Attributes:
        usage: of the answers to the last call, also if it raised an error.
        usage_now: of those of them that the last call had to ask for, and of its probes.
    """

    def __init__(
        self, settings: LLMSettings, kept: str | Path, *, sleep: Sleep = asyncio.sleep
    ) -> None:
        self.settings, self.kept, self.sleep = settings, Path(kept), sleep
        self.template = read_template(settings.template)
        self.usage = self.usage_now = _usage([], settings)

    def __call__(self, pairs: pd.DataFrame) -> pd.DataFrame:
        """Verdicts of pairs (columns of `PAIR`), under their index.

        Raises:
            UserError: as `ask`; a missing verdict is no error.
        """
        bodies: dict[str, Body] = {}
        rows: list[tuple[str, str] | None] = []
        for prompt, a, b in pairs[PAIR].itertuples(index=False):
            if a == b:
                rows.append(None)
                continue
            orders = [self._body(prompt, a, b), self._body(prompt, b, a)]
            names = [_name(body) for body in orders]
            bodies.update(zip(names, orders, strict=True))
            rows.append((names[0], names[1]))
        found = self._verdicts(bodies)
        same = (0.5, "", "", "")
        values = [same if row is None else _both(found[row[0]], found[row[1]]) for row in rows]
        table = pd.DataFrame(values, columns=VERDICT, index=pairs.index)
        return table.astype({"preference": "float64"})

    def _body(self, prompt: str, first: str, second: str) -> Body:
        settings = self.settings
        content = question(self.template, prompt, first, second)
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
        }
        return {k: v for k, v in body.items() if v is not None} | dict(settings.options)

    def _verdicts(self, bodies: Mapping[str, Body]) -> dict[str, Found]:
        """By name, what each question came to."""
        answers = {name: kept for name in bodies if (kept := self._read(name)) is not None}
        left = {name: body for name, body in bodies.items() if name not in answers}
        known = [bodies[name] for name in answers]
        probes: list[Answer] = []
        done = len(known)
        with track(len(bodies), "judge", "answer", start=done) as progress:

            def on_done(name: str, answer: Answer | None) -> None:
                nonlocal done
                done += 1
                if answer is not None:
                    write_json(self._file(name), answer._asdict())
                    answers[name] = answer
                progress.update(done, unanswered=done - len(answers))

            try:
                key = read_key(self.settings.key_variable) if left else None
                reasons = ask(
                    left, self.settings, key, on_done, probes.append, known=known, sleep=self.sleep
                )
            finally:  # what came before a deadline or an outage was paid for
                every, now = (
                    [a for n in names if (a := answers.get(n))] for names in (bodies, left)
                )
                self.usage = _usage(every, self.settings)
                self.usage_now = _usage([*now, *probes], self.settings)
        return {
            name: self._verdict(answers[name]) if name in answers else ("", reasons[name])
            for name in bodies
        }

    def _verdict(self, answer: Answer) -> Found:
        if answer.finish_reason in BROKEN_OFF:
            return "", BROKEN_OFF[answer.finish_reason]
        return read_verdict(self.template, answer.text)

    def _file(self, name: str) -> Path:
        return self.kept / name[:2] / f"{name}.json"

    def _read(self, name: str) -> Answer | None:
        """A kept answer; None where there is none, or its file is damaged."""
        try:
            values = json.loads(self._file(name).read_text(encoding="utf-8"))
            answer = Answer(**values)
        except (OSError, ValueError, RecursionError, TypeError):
            return None
        texts = (answer.text, answer.finish_reason, answer.model)
        counts = (answer.prompt_tokens, answer.completion_tokens)
        whole = all(isinstance(one, str) for one in texts) and all(
            one is None or type(one) is int for one in counts
        )
        return answer if whole and answer.finish_reason != "error" else None


def _name(body: Body) -> str:
    """SHA-256 of a request: all that decides its answer."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _both(ab: Found, ba: Found) -> tuple[float, str, str, str]:
    """A row of `VERDICT` from what was found with a shown first, and with b shown first."""
    first = {"A": "a", "B": "b", "": ""}[ab[0]]
    second = {"A": "b", "B": "a", "": ""}[ba[0]]
    if not (first and second):
        return float("nan"), first, second, ab[1] or ba[1]
    return ((first == "a") + (second == "a")) / 2, first, second, ""


def _usage(answers: list[Answer], settings: LLMSettings) -> Usage:
    prompt = sum(answer.prompt_tokens or 0 for answer in answers)
    completion = sum(answer.completion_tokens or 0 for answer in answers)
    unreported = sum(None in (a.prompt_tokens, a.completion_tokens) for a in answers)
    spend = None
    if settings.prompt_price is not None and settings.completion_price is not None:
        total = prompt * settings.prompt_price + completion * settings.completion_price
        spend = total / MILLION
    models = tuple(sorted({answer.model for answer in answers if answer.model}))
    return Usage(len(answers), prompt, completion, unreported, spend, models)
