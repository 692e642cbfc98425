"""Many questions to an OpenAI-compatible endpoint: at once, again where it may help, and no longer.

One request is one `POST {base_url}/chat/completions`. The key goes into its header and nowhere
else: messages, answers and errors are cleared of it.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx2

from betaflow.errors import UserError

if TYPE_CHECKING:
    from betaflow.config import LLMSettings

Body = Mapping[str, Any]
Sleep = Callable[[float], Awaitable[Any]]

LONGEST = 1 << 20  # bytes of an answer; a verdict takes a thousandth of it
FIRST_WAIT, LAST_WAIT = 1.0, 60.0  # seconds: the wait doubles from the one to the other
OUTAGE = 8  # questions in a row that fail at each try: is the endpoint down, or are they odd?
AGAIN = {408, 409, 425, 429}  # statuses that may pass, as those from 500 up
SHOWN = 200  # characters of a server's message that are told


class Answer(NamedTuple):
    """What the endpoint said to one question, as it said it."""

    text: str
    finish_reason: str  # "stop", or why it broke off: "length", "content_filter"
    model: str  # by its own account
    prompt_tokens: int | None  # None: it did not say
    completion_tokens: int | None


class Failure(NamedTuple):
    """Why there is no answer: `reason` for a table, `told` for a person."""

    reason: str
    told: str
    again: bool  # whether asking again may help
    after: float = 0.0  # seconds that the endpoint wants to be left alone
    down: bool = False  # nobody is there


def read_key(variable: str | None) -> str | None:
    """The key, from the environment variable of that name; None where there is none to send."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"the environment variable {variable}, which compare.llm.key_variable names, is not "
            "set; set it to the endpoint's key, or set compare.llm.key_variable: null"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            f"the environment variable {variable} holds no key, which is one ASCII word"
        )
    return key


def ask(
    bodies: Mapping[str, Body],
    settings: LLMSettings,
    key: str | None,
    on_done: Callable[[str, Answer | None], None],
    on_probe: Callable[[Answer], None],
    *,
    known: Sequence[Body] = (),
    sleep: Sleep = asyncio.sleep,
) -> dict[str, str]:
    """Ask every question; `settings.concurrency` of them at a time.

    A timeout, a lost connection, a malformed answer and the statuses 408, 409, 425, 429 and 5xx are
    tried again, `settings.retries` times, after a wait that doubles, is drawn from its upper half,
    and is no shorter than the endpoint asks (Retry-After). Other refusals of a question are final.

    Questions that fail each time may stand in a row: a run that goes on where another ended skips
    the answers between them. So where it is in doubt whether the endpoint works, one that it has
    answered before is asked anew, as a probe.

    Args:
        bodies: by name, each request's JSON.
        on_done: gets each answer, under its name, as it comes; None where there is none.
        on_probe: gets the answer to each probe, which was paid for as others are.
        known: questions that the endpoint answered before, maybe with another key.
        sleep: waits so many seconds.

    Returns:
        By name, why a question has no answer; nothing of those that have one.

    Raises:
        UserError: the endpoint can't be used (no server, key, model or credit), or the deadline is
            over. Answers that came before have been handed over.
    """
    if not bodies:
        return {}
    return asyncio.run(_Asking(settings, key, on_done, on_probe, known, sleep).all(bodies))


class _Asking:
    """One run of `ask`: its connections, and how it is going."""

    def __init__(
        self,
        settings: LLMSettings,
        key: str | None,
        on_done: Callable[[str, Answer | None], None],
        on_probe: Callable[[Answer], None],
        known: Sequence[Body],
        sleep: Sleep,
    ) -> None:
        self.settings, self.key, self.sleep = settings, key, sleep
        self.on_done, self.on_probe = on_done, on_probe
        self.secret = None if key is None else _spellings(key)
        self.random = random.Random()
        self.url = settings.base_url.rstrip("/") + "/chat/completions"
        self.answered = len(known)
        self.proven = next(iter(known), None)  # a question that can be answered
        self.allowed = False  # whether this key has got an answer
        self.in_a_row = 0  # questions that failed at each try, since the last answer
        self.reasons: dict[str, str] = {}
        self.last = Failure("", "", again=False)
        self.end = time.monotonic() + (settings.deadline or math.inf)

    async def all(self, bodies: Mapping[str, Body]) -> dict[str, str]:
        """Ask by so many workers; the first error ends them all."""
        headers = {"Accept-Encoding": "identity"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        count = min(self.settings.concurrency, len(bodies))
        limits = httpx2.Limits(max_connections=count, max_keepalive_connections=count)
        left = iter(bodies.items())
        async with httpx2.AsyncClient(headers=headers, limits=limits, timeout=None) as self.client:
            workers = [asyncio.create_task(self._work(left)) for _ in range(count)]
            try:
                async with asyncio.timeout(self.settings.deadline):
                    await asyncio.gather(*workers)
            except TimeoutError:
                raise self._late() from None
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        if not self.answered:
            raise self._outage(self.last)
        return self.reasons

    async def _work(self, left: Iterator[tuple[str, Body]]) -> None:
        for name, body in left:
            found = await self._persist(body)
            if isinstance(found, Answer):
                self.answered += 1
                self.proven, self.allowed, self.in_a_row = body, True, 0
                self.on_done(name, found)
            else:
                await self._note(name, found)
                self.on_done(name, None)

    async def _persist(self, body: Body) -> Answer | Failure:
        """Ask until there is an answer, or no use in asking on."""
        for attempt in range(self.settings.retries + 1):
            found = await self._once(body)
            if isinstance(found, Answer) or not found.again:
                break
            if attempt < self.settings.retries:
                longest = min(LAST_WAIT, FIRST_WAIT * 2**attempt)
                wait = max(found.after, self.random.uniform(longest / 2, longest))
                if time.monotonic() + wait > self.end:
                    raise self._late()
                await self.sleep(wait)
        return found

    async def _once(self, body: Body) -> Answer | Failure:
        content = b""
        try:
            async with (
                asyncio.timeout(self.settings.timeout),
                self.client.stream("POST", self.url, json=body) as response,
            ):
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > LONGEST:
                        return Failure("answer too long", f"over {LONGEST} bytes", again=False)
        except (httpx2.ConnectError, httpx2.ProxyError) as error:
            return Failure("no connection", self._clear(str(error)), again=True, down=True)
        except TimeoutError:
            told = f"nothing within {self.settings.timeout:g} s"
            return Failure("timeout", told, again=True)
        except httpx2.TransportError as error:
            return Failure("connection lost", self._clear(str(error)), again=True)
        except httpx2.DecodingError as error:
            return Failure("malformed answer", self._clear(str(error)), again=True)
        text = content.decode("utf-8", "replace")
        if response.status_code == 200:
            answer = _read(text)
            if answer is None:
                return Failure("malformed answer", self._clear(text), again=True)
            words, reason, model = map(self._safe, answer[:3])
            return answer._replace(text=words, finish_reason=reason, model=model)
        if response.status_code == 403 and not self.allowed and body is not self.proven:
            await self._works()  # is it the key, or this question?
        return self._refusal(response, text)

    def _refusal(self, response: httpx2.Response, text: str) -> Failure:
        """What a status other than 200 means. Raises UserError where it means all questions."""
        status, told = response.status_code, self._clear(_message(text))
        said = f"{self.url} answers HTTP {status}: {told}"
        variable = self.settings.key_variable
        if status == 401 or (status == 403 and not self.allowed):
            where = (
                f"the key in the environment variable {variable} is not accepted for the model "
                f"{self.settings.model}"
                if variable
                else "it wants a key: put it into an environment variable, and name that variable "
                "in compare.llm.key_variable"
            )
            raise UserError(f"{said}; {where}")
        if status in (404, 405) or 300 <= status < 400:
            raise UserError(
                f"{said}; check compare.llm.base_url, which usually ends with /v1, and "
                f"compare.llm.model, {self.settings.model!r}"
            )
        if status == 402 or "insufficient_quota" in text:
            raise UserError(f"{said}; the account has no credit left")
        again = status in AGAIN or status >= 500
        after = _seconds(response.headers.get("retry-after")) if again else 0.0
        return Failure(f"HTTP {status}", told, again, after)

    async def _note(self, name: str, failure: Failure) -> None:
        """Keep why a question has no answer. Raises UserError where it seems that none will."""
        self.reasons[name] = failure.reason
        self.last = failure
        if failure.down:
            raise UserError(
                f"can't connect to {self.url}: {failure.told}; check that the server is running, "
                f"and compare.llm.base_url{self._kept()}"
            )
        if not failure.again:  # a refusal is of one question, and from a server that works
            return
        self.in_a_row += 1
        if self.in_a_row % OUTAGE == 0 and not await self._works() and self.in_a_row >= OUTAGE:
            raise self._outage(failure)

    async def _works(self) -> bool:
        """Whether a question that was answered before, if there is one, is answered anew."""
        if self.proven is None:
            return False
        found = await self._persist(self.proven)
        if isinstance(found, Failure):
            return False
        self.allowed, self.in_a_row = True, 0
        self.on_probe(found)
        return True

    def _outage(self, failure: Failure) -> UserError:
        count = self.in_a_row if self.answered else len(self.reasons)
        return UserError(
            f"{self.url} gives no answers: {count} questions in a row ended without one, the last "
            f"with {failure.reason} ({failure.told}); check the server, and compare.llm"
            f"{self._kept()}"
        )

    def _late(self) -> UserError:
        return UserError(
            f"compare.llm.deadline, {self.settings.deadline:g} s, does not suffice: raise it, or "
            f"run again to go on{self._kept()}"
        )

    def _kept(self) -> str:
        kept = self.answered
        return f"; the {kept} answers that came are kept, and are not asked for again" * bool(kept)

    def _clear(self, text: str) -> str:
        """A server's words in one short line, without the key."""
        line = " ".join("".join(c if c.isprintable() else " " for c in self._safe(text)).split())
        return line[:SHOWN] + "…" * (len(line) > SHOWN) or "no message"

    def _safe(self, text: str) -> str:
        """A server's words as a file can hold them (no lone surrogate), without the key."""
        sound = text.encode("utf-8", "replace").decode("utf-8")
        return sound if self.secret is None else self.secret.sub("[key]", sound)


def _spellings(key: str) -> re.Pattern[str]:
    """The key as it is, and with JSON's escapes, as a text that holds JSON may show it."""
    return re.compile(
        "".join(rf"\\{{0,3}}(?:{re.escape(c)}|(?<=\\)u(?i:{ord(c):04x}))" for c in key)
    )


def _read(text: str) -> Answer | None:
    """The answer in a response's JSON, None where it is not of the form, or says it failed."""
    try:
        found = json.loads(text)
        choice = found["choices"][0]
        words, reason = choice["message"]["content"], choice["finish_reason"]
        usage = found.get("usage") or {}
        tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        model = found.get("model")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None
    prompt, completion = (one if type(one) is int and one >= 0 else None for one in tokens)
    if not isinstance(words, str | None) or not isinstance(reason, str | None):
        return None
    if reason == "error":  # what words there are broke off
        return None
    return Answer(words or "", reason or "stop", str(model or ""), prompt, completion)


def _message(text: str) -> str:
    """What an error's JSON says, or the text as it is."""
    try:
        found = json.loads(text)
        return str(found["error"]["message"])
    except (ValueError, RecursionError, LookupError, TypeError):
        return text


def _seconds(header: str | None) -> float:
    """A Retry-After header, seconds or a date, as seconds from now; 0 where it says nothing."""
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
