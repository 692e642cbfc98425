"""Train and eval, told apart by a hash: no seed, no file order, no prompt in both.

What is hashed is the conversation's opening (up to the first answer to a user: a greeting before
that is no answer), not all of it. Preference data often asks about the same conversation at
several of its turns, so a long prompt may hold, word for word, a shorter prompt and the answer
chosen for it. Keeping a conversation on one side keeps held-out answers out of the training text.
"""

from __future__ import annotations

import hashlib

from betaflow.data.schema import Content
from betaflow.data.transcripts import ASSISTANT, is_transcript

# Part of every split ever made: changing it moves prompts from train to eval.
SALT = "betaflow-split-1"


def in_eval(content: Content, eval_fraction: float) -> bool:
    """Tell whether a prompt (or an SFT document) is held out.

    A larger `eval_fraction` adds to the held-out set and takes nothing away from it.
    """
    digest = hashlib.sha256(f"{SALT}\0{opening(content)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < eval_fraction * 2**64


def opening(content: Content) -> str:
    """Return what decides the split: the text up to the first answer, white space evened out."""
    if isinstance(content, str):
        text = content.partition(ASSISTANT)[0] if is_transcript(content) else content
    else:
        roles = [message["role"] for message in content]
        asked = roles.index("user") if "user" in roles else 0
        end = roles.index("assistant", asked) if "assistant" in roles[asked:] else len(roles)
        text = "\n".join(f"{message['role']}: {message['content']}" for message in content[:end])
    return " ".join(text.split())
