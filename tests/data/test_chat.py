from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from betaflow.data.chat import render, render_prompt, render_text
from betaflow.data.tokenise import encode
from betaflow.errors import UserError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The generation prompt opens a line of thought that a past conversation does not show.
REASONING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
# No generation prompt at all, and BOS spelled out.
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no system role here') }}{% endif %}{% endfor %}"
)
HIDING = "{{ messages | length }} messages, the last {{ messages[-1].content | length }} long"

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, you"}


def tokenizer(template: str | None, eos: str, bos: bool = False) -> PreTrainedTokenizerFast:
    specials = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(specials + letters)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=eos)
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast.chat_template = template
    return fast


def test_text_passes_through() -> None:
    plain = tokenizer(None, "</s>")
    assert render(plain, "p", " c") == ("p", " c")
    assert render_prompt(plain, "p") == "p"
    assert render_text(plain, {"text": "a</s>"}) == "a</s>"


def test_chatml() -> None:
    fast = tokenizer(CHATML, "<|im_end|>")
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(fast, [USER], [ANSWER]) == (prompt, "Hello, you")
    assert render_prompt(fast, [USER]) == prompt
    assert render_text(fast, {"messages": [USER, ANSWER]}) == f"{prompt}Hello, you"


@pytest.mark.parametrize(
    ("template", "eos", "bos"),
    [(CHATML, "<|im_end|>", False), (CHATML, "</s>", True), (LLAMA, "</s>", True)],
)
def test_special_tokens_are_there_exactly_once(template: str, eos: str, bos: bool) -> None:
    fast = tokenizer(template, eos, bos)
    prompt, completion = encode(fast, *render(fast, [USER], [ANSWER]))
    ids = prompt + completion
    assert completion[-1] == fast.eos_token_id != completion[-2]
    assert completion.count(fast.eos_token_id) == 1
    assert ids.count(fast.bos_token_id) == bos
    assert prompt == fast(render_prompt(fast, [USER])).input_ids
    assert "Hello, you" in fast.decode(completion)
    text = fast(render_text(fast, {"messages": [USER, ANSWER]})).input_ids
    assert [*text, fast.eos_token_id] == ids


def test_bos_text_stays_where_the_tokenizer_adds_none() -> None:
    fast = tokenizer(LLAMA, "</s>", bos=False)
    assert render(fast, [USER], [ANSWER]) == ("<s>[INST] Hi [/INST]", " Hello, you")


def test_a_prompt_that_ends_with_eos_keeps_it() -> None:
    fast = tokenizer(CHATML.partition("{% if add")[0], "<|im_end|>")
    prompt = "<|im_start|>user\nHi<|im_end|>\n"
    assert render(fast, [USER], [ANSWER]) == (prompt, "<|im_start|>assistant\nHello, you")


def test_a_template_that_does_not_nest() -> None:
    fast = tokenizer(REASONING, "<|im_end|>")
    prompt, completion = render(fast, [USER], [{**ANSWER, "content": " e "}])
    assert prompt.endswith("assistant\n<think>\n")
    assert prompt == render_prompt(fast, [USER])
    assert completion == "e"


def test_answers_that_cannot_be_found() -> None:
    with pytest.raises(UserError, match="hides where the answer begins"):
        render(tokenizer(HIDING, "</s>"), [USER], [ANSWER])


def test_no_template_says_what_to_do() -> None:
    with pytest.raises(UserError, match="no chat template; use an instruct model"):
        render(tokenizer(None, "</s>"), [USER], [ANSWER])


def test_a_template_that_refuses() -> None:
    with pytest.raises(UserError, match="roles system, user: no system role here"):
        render_prompt(tokenizer(LLAMA, "</s>"), [{"role": "system", "content": "x"}, USER])


def test_mixed_kinds_are_refused() -> None:
    with pytest.raises(UserError, match="both text, or both"):
        render(tokenizer(CHATML, "</s>"), "p", [ANSWER])
