"""HH transcripts: two whole conversations that differ in the Assistant's last turn.

The format of Anthropic's helpful-and-harmless data (Bai et al. 2022), split as the DPO paper's
code splits it: the prompt ends with the last "Assistant:" tag, and a completion keeps its
leading space, so that prompt + completion is the transcript again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from betaflow.data.schema import (
    DIFFERENT_CONVERSATIONS,
    Dropped,
    Pair,
    fail,
    make_pair,
    parse_content,
)

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"


def is_transcript(text: str) -> bool:
    """Whether a text opens as a transcript does, white space before it left out."""
    return text.lstrip().startswith(HUMAN.lstrip())


def parse_transcripts(values: Mapping[str, Any], where: str) -> Pair | Dropped:
    """Turn a row of two transcripts, `chosen` and `rejected`, into a pair."""
    prompts, completions = [], []
    for name in ("chosen", "rejected"):
        text = parse_content(values, name, where)
        if not isinstance(text, str):
            fail(where, f"`{name}` must be a transcript; rows of messages are source jsonl or hub")
        for tag in (HUMAN, ASSISTANT):
            if tag not in text:
                fail(where, f"`{name}` has no {tag!r}: it is not a transcript")
        cut = text.rindex(ASSISTANT) + len(ASSISTANT)
        prompts.append(text[:cut])
        completions.append(text[cut:])
    if any(HUMAN in completion for completion in completions):
        return Dropped("the last turn is not the Assistant's")
    if prompts[0] != prompts[1]:
        return Dropped(DIFFERENT_CONVERSATIONS)
    return make_pair(prompts[0], *completions)
