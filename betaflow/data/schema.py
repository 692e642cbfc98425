"""What a row of preference data is.

A row has `prompt`, `chosen` and `rejected`, each a string or a list of chat messages
(`{"role", "content"}`). With messages, `prompt` may be left out (or be the first user message's
text) when `chosen` and `rejected` are whole conversations that differ in the last message.

A malformed row is a `UserError` that names its place ("data/pairs.jsonl:17"). A well-formed row
that can't serve as a preference is `Dropped`, with the reason that the statistics count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from betaflow.errors import UserError

Message = dict[str, str]
Content = str | list[Message]


class Pair(NamedTuple):
    """One preference: completions are both strings, or both lists of one assistant message."""

    id: str
    prompt: Content
    chosen: Content
    rejected: Content


class Dropped(NamedTuple):
    """A well-formed row that is left out, and why."""

    reason: str


DIFFERENT_CONVERSATIONS = "chosen and rejected differ before the last turn"


def make_pair(prompt: Content, chosen: Content, rejected: Content) -> Pair:
    """Build a pair; its id is a hash of its content alone."""
    return Pair(content_id([prompt, chosen, rejected]), prompt, chosen, rejected)


def content_id(value: Any) -> str:
    """Hash JSON-like content to 16 hex digits: the same content has the same id anywhere."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def text_of(content: Content) -> str:
    """Return the text a reader would see, without roles."""
    if isinstance(content, str):
        return content
    return "\n\n".join(message["content"] for message in content)


def parse_pair(values: Mapping[str, Any], where: str) -> Pair | Dropped:
    """Check one row and turn it into a pair.

    Raises `UserError` naming `where` and the key if the row is malformed.
    """
    chosen = parse_content(values, "chosen", where)
    rejected = parse_content(values, "rejected", where)
    prompt = None if values.get("prompt") is None else parse_content(values, "prompt", where)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            parse_content(values, "prompt", where)  # says that it is missing
        if not isinstance(prompt, str):
            fail(where, "`prompt` is a list of messages, but `chosen` and `rejected` are text")
        return make_pair(prompt, chosen, rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        fail(where, "`chosen` and `rejected` must be both text, or both lists of messages")
    return _conversation_pair(prompt, chosen, rejected, where)


def _conversation_pair(
    prompt: Content | None, chosen: list[Message], rejected: list[Message], where: str
) -> Pair | Dropped:
    if isinstance(prompt, list):
        # Completions may repeat the prompt's messages or come alone.
        start = len(prompt)
        chosen = chosen[start:] if chosen[:start] == prompt else chosen
        rejected = rejected[start:] if rejected[:start] == prompt else rejected
    elif prompt is not None and len(chosen) == len(rejected) == 1:
        prompt = [{"role": "user", "content": prompt}]
    else:
        shared = chosen[:-1]
        if prompt is not None and 1 in (len(chosen), len(rejected)):
            fail(
                where,
                "`chosen` and `rejected` must both be the answer alone or both whole conversations",
            )
        if not shared:
            fail(where, "`prompt` is missing, and `chosen` holds a single message: give a prompt")
        if rejected[:-1] != shared:
            return Dropped(DIFFERENT_CONVERSATIONS)
        if prompt is not None and prompt.strip() not in (m["content"].strip() for m in shared):
            fail(where, "`prompt` is not one of the messages that `chosen` and `rejected` share")
        prompt, chosen, rejected = shared, chosen[-1:], rejected[-1:]
    if prompt[-1]["role"] == "assistant":
        fail(where, "the prompt must end before the assistant's turn")
    for name, completion in (("chosen", chosen), ("rejected", rejected)):
        if [message["role"] for message in completion] != ["assistant"]:
            fail(where, f"`{name}` must be one assistant message after the prompt")
    return make_pair(prompt, chosen, rejected)


def parse_content(values: Mapping[str, Any], key: str, where: str) -> Content:
    """Return `values[key]` as text or messages; `UserError` if it is neither."""
    value = values.get(key)
    if value is None:
        kind = "null" if key in values else "missing"
        keys = ", ".join(values) or "none"
        fail(where, f"`{key}` is {kind} (the row's keys: {keys})")
    if isinstance(value, str):
        return _unicode(value, key, where)
    if not isinstance(value, list):
        kind = type(value).__name__
        fail(where, f"`{key}` must be text or a list of messages, not {kind}")
    if not value:
        fail(where, f"`{key}` is an empty list of messages")
    return [_message(item, f"{key}[{index}]", where) for index, item in enumerate(value)]


def _message(value: Any, key: str, where: str) -> Message:
    if not isinstance(value, dict):
        fail(where, f"`{key}` must be a message, {{'role', 'content'}}, not {type(value).__name__}")
    for name in ("role", "content"):
        if not isinstance(value.get(name), str):
            fail(where, f"`{key}.{name}` must be text")
    # Columnar files fill keys that other rows have with nulls; a value would be lost in silence.
    extra = sorted(
        name for name in value if name not in ("role", "content") and value[name] is not None
    )
    if extra:
        fail(where, f"`{key}` has keys that no stage uses: {', '.join(extra)}; remove them")
    return {name: _unicode(value[name], f"{key}.{name}", where) for name in ("role", "content")}


def _unicode(text: str, key: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # JSON can spell half of a surrogate pair, which no file or tokenizer can hold.
        fail(where, f"`{key}` holds an escape that is not a character (a lone surrogate)")
    return text


def fail(where: str, message: str) -> NoReturn:
    """Raise the `UserError` for a malformed row."""
    raise UserError(f"{where}: {message}")
