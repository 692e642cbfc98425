"""The terminal's chat: both models answer each prompt, and what they write stays text."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from promotions import GOOD
from rich.console import Console

from betaflow.config import Params
from betaflow.sampling.engine import Completion
from tasks import chat
from tasks.promote import promote_arm


def run(monkeypatch: pytest.MonkeyPatch, typed: str, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["chat", *words])
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    return chat.main()


def test_both_answer_every_line_that_is_piped_in(
    sweep: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "the film was\n") == 2  # there is no champion
    assert "has no champion yet; `make promote`" in capsys.readouterr().err
    assert promote_arm(sweep, GOOD).promoted
    capsys.readouterr()
    words = ("--max-tokens", "5", "--seed", "3")
    assert run(monkeypatch, "the film was\n\n  \nthe plot of [red]it\x1b[2J\n", *words) == 0
    first = capsys.readouterr().out
    assert first.count(f"champion: version 1, {GOOD}") == first.count("SFT") == 2
    assert r"the plot of [red]it\x1b[2J" in first
    assert "\x1b" not in first
    assert run(monkeypatch, "the film was\n\n  \nthe plot of [red]it\x1b[2J\n", *words) == 0
    assert capsys.readouterr().out == first
    long = "the film was " * 200
    assert run(monkeypatch, f"{long}\n") == 0
    assert "it takes 1 to 127" in " ".join(capsys.readouterr().out.replace("│", " ").split())


class Evil:
    """An engine whose model writes what would move the cursor, or be markup."""

    max_length = 100

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def generate(self, requests: list[Any]) -> list[Completion]:
        return [Completion([5], "[bold]a[/bold]\x1b]0;title\x07\r\u202eb\x9b2J", "stop", 0.0)]


def test_what_a_model_writes_is_text(
    sweep: Params, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from betaflow.policy.loading import load_tokenizer

    monkeypatch.setattr(sys, "stdin", io.StringIO("x\n"))
    out = io.StringIO()
    asked = argparse.Namespace(temperature=0.0, max_tokens=4, seed=0)
    engine: Any = Evil(load_tokenizer(tiny))
    chat.talk(sweep, {"one": engine}, asked, Console(file=out, width=90, force_terminal=True))
    shown = out.getvalue()
    assert r"[bold]a[/bold]\x1b]0;title\x07\x0d\u202eb\x9b2J" in shown
    assert not set("\x07\r\u202e\x9b") & set(shown)


def test_what_is_typed_takes_the_form_of_the_data_s_prompts() -> None:
    transcript = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:"
    assert chat._prompt("so?", transcript) == "\n\nHuman: so?\n\nAssistant:"
    assert chat._prompt("so?", "the plot") == "so?"
    message = {"role": "user", "content": "so?"}
    assert chat._prompt("so?", [{"role": "user", "content": "hi"}]) == [message]


def test_a_terminal_s_end_of_input_and_ctrl_c_end_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    typed = iter(["one", " ", "two"])

    def ask(_: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", ask)
    assert list(chat._lines(Console())) == ["one", "two"]

    def interrupted() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "load_params", interrupted)
    monkeypatch.setattr(sys, "argv", ["chat"])
    assert chat.main() == 0


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--help"], 0, "Ctrl-D"),
        (["--temperature", "-1"], 2, "-1 is less than 0"),
        (["--max-tokens", "many"], 2, "invalid number value: 'many'"),
    ],
)
def test_the_command_line_teaches(
    words: list[str],
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, "", *words)
    assert left.value.code == status
    shown = capsys.readouterr()
    assert said in shown.out + shown.err
