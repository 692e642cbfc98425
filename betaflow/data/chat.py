"""From rows to the text a model reads and writes.

Strings pass through. Messages go through the model's own chat template. The special tokens at
either end belong to tokenisation, which adds each exactly once: so what is returned never ends
with the end-of-sequence text (nor with white space that a template puts after it, which no
policy ever samples), and does not begin with the beginning-of-sequence text if the tokenizer
adds that token by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from betaflow.data.schema import Content, Message
from betaflow.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands for an answer, to see what a template writes around it.
PLACEHOLDER = "betaflowplaceholder"


def render(
    tokenizer: PreTrainedTokenizerBase, prompt: Content, completion: Content
) -> tuple[str, str]:
    """Return (prompt text, completion text), which a policy reads and writes.

    The prompt text is what it is sampled with (with the template's generation prompt), the same
    whatever the completion. Raises `UserError` if the tokenizer has no chat template, if the
    template refuses the messages, or if the answer can't be found in what it renders.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, completion
    if isinstance(prompt, str) or isinstance(completion, str):
        raise UserError("prompt and completion must be both text, or both lists of messages")
    start = render_prompt(tokenizer, prompt)
    whole = _apply(tokenizer, prompt + completion)
    if whole.startswith(start):
        return start, whole[len(start) :]
    # The template writes a past conversation otherwise than an open one (it drops earlier
    # reasoning, say, or opens one for the answer): cut where the answer itself begins.
    marked = _apply(tokenizer, [*prompt, {**completion[0], "content": PLACEHOLDER}])
    head, found, tail = marked.rpartition(PLACEHOLDER)
    ends_match = whole.startswith(head) and whole.endswith(tail)
    if not found or len(completion) > 1 or len(whole) < len(head + tail) or not ends_match:
        raise UserError(
            "the tokenizer's chat template renders a conversation in a way that hides where the "
            "answer begins; set another `chat_template` on the tokenizer, or give rows of text"
        )
    return start, whole[len(head) :]


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Content) -> str:
    """Return the text a policy is sampled with."""
    if isinstance(prompt, str):
        return prompt
    return _apply(tokenizer, prompt, add_generation_prompt=True)


def render_text(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> str:
    """Return the text of an SFT row, `{"text"}` or `{"messages"}`."""
    if "messages" not in row:
        return str(row["text"])
    return _apply(tokenizer, row["messages"])


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    add_generation_prompt: bool = False,
) -> str:
    if not tokenizer.chat_template:
        raise UserError(
            "the data holds chat messages, but the model's tokenizer has no chat template; use an "
            "instruct model, set `chat_template` on the tokenizer (chat_template.jinja in the "
            "model's folder), or give rows of text"
        )
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # jinja2's own errors, which templates also raise on purpose
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"the tokenizer's chat template refuses a conversation of roles {roles}: {error}"
        ) from error
    text = str(text)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    if bos and text.startswith(bos) and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]:
        text = text.removeprefix(bos)
    # An open prompt keeps its end: where no generation prompt follows, EOS closes the user's turn.
    if eos and not add_generation_prompt and text.rstrip().endswith(eos):
        text = text.rstrip().removesuffix(eos)
    return text
