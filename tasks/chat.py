"""Talk to the champion and to SFT side by side, in the terminal.

Write the beginning of a text (or a message, where the data are conversations or transcripts) and
press Enter: both models go on from it. Each prompt stands alone; neither model remembers the one
before. Ctrl-D or Ctrl-C ends. Prompts can be piped in, one a line: `echo "the plot was" | python -m
tasks.chat`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from betaflow.config import Params, load_params
from betaflow.data.chat import render_prompt
from betaflow.data.schema import Content
from betaflow.data.tokenise import encode_prompt
from betaflow.data.transcripts import ASSISTANT, HUMAN, is_transcript
from betaflow.errors import UserError
from betaflow.io import read_jsonl
from betaflow.report.text import visible
from betaflow.sampling.engine import Engine, Request, open_engine
from tasks import tracking
from tasks._registry import CHAMPION, MODEL, TAG, Registry

EXAMPLES = """examples:
  python -m tasks.chat                         what params.yaml says under promotion and sample
  python -m tasks.chat --temperature 0         each model's likeliest words
  python -m tasks.chat --seed 7 < prompts.txt  one prompt a line; the same seed, the same answers
"""


def main() -> int:
    """Load both models, answer until the input ends. Returns 0, or 2 for a user's error."""
    asked = _arguments()
    console = Console() if sys.stdout.isatty() else Console(width=120)
    try:
        params = load_params()
        with tempfile.TemporaryDirectory() as place:
            name, folder = champion(params, Path(place))
            engines = {name: _engine(params, folder), "SFT": _engine(params, Path("out/sft"))}
            talk(params, engines, asked, console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        console.print()
    return 0


def champion(params: Params, place: Path) -> tuple[str, Path]:
    """What the champion is called, and its model, fetched from the registry into `place`."""
    model = params.run.registered_model
    with tracking.reachable():
        registry = Registry(tracking.client(), model)
        version = registry.holder(CHAMPION)
        if version is None:
            raise UserError(f"{model} has no champion yet; `make promote` makes the best arm one")
        folder = registry.download(version.number, MODEL, place)
    if folder is None or not (folder / "config.json").exists():
        raise UserError(f"version {version.number} of {model} holds no model; promote an arm anew")
    return f"champion: version {version.number}, {version.tags.get(f'{TAG}arm', '?')}", folder


def talk(
    params: Params, engines: dict[str, Engine], asked: argparse.Namespace, console: Console
) -> None:
    """Read prompts, show what each engine makes of them."""
    temperature = params.promotion.temperature if asked.temperature is None else asked.temperature
    budget = asked.max_tokens or params.sample.max_new_tokens
    like = read_jsonl("out/data/prompts_eval.jsonl")[0]["prompt"]
    for number, line in enumerate(_lines(console)):
        answers = [
            _answer(engine, _prompt(line, like), temperature, budget, asked.seed + number)
            for engine in engines.values()
        ]
        table = Table(title=Text(visible(line)), title_justify="left", expand=True)
        for name in engines:
            table.add_column(Text(name), ratio=1, overflow="fold")
        table.add_row(*answers)
        console.print(table)


def _prompt(line: str, like: Content) -> Content:
    """What was typed, in the form of the data's prompts: messages, a transcript, or text."""
    if not isinstance(like, str):
        return [{"role": "user", "content": line}]
    return f"{HUMAN} {line}{ASSISTANT}" if is_transcript(like) else line


def _answer(engine: Engine, prompt: Content, temperature: float, budget: int, seed: int) -> Text:
    ids = encode_prompt(engine.tokenizer, render_prompt(engine.tokenizer, prompt))
    room = engine.max_length - len(ids)
    if room < 1 or not ids:
        long = f"The prompt has {len(ids)} tokens; it takes 1 to {engine.max_length - 1}."
        return Text(long, style="italic")
    (found,) = engine.generate([Request(ids, temperature, seed, min(budget, room))])
    # What a model writes is text and nothing else: no markup, no control of the terminal.
    text = Text(visible(found.text))
    if found.finish_reason != "stop":
        text.append(" […]", style="dim")
    return text


def _lines(console: Console) -> Iterator[str]:
    """Prompts, from a terminal or a pipe, until the input ends; empty lines are passed over."""
    if not sys.stdin.isatty():
        yield from filter(str.strip, (line.rstrip("\r\n") for line in sys.stdin))
        return
    import readline  # noqa: F401 -- gives `input` a line to edit, and a history

    console.print("Ctrl-D ends.")
    while True:
        try:
            line = input("> ")
        except EOFError:
            console.print()
            return
        if line.strip():
            yield line


def _engine(params: Params, folder: Path) -> Engine:
    return open_engine(
        "hf",
        folder,
        threads=params.sample.threads,
        trust_remote_code=params.model.trust_remote_code,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.chat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--temperature",
        type=_at_least(float, 0),
        help="0: the likeliest word each time; default: promotion.temperature",
    )
    parser.add_argument(
        "--max-tokens",
        type=_at_least(int, 1),
        help="longest answer; default: sample.max_new_tokens",
    )
    parser.add_argument(
        "--seed", type=_at_least(int, 0), default=0, help="of the draws; default: 0"
    )
    return parser.parse_args()


def _at_least(kind: type[int] | type[float], least: int) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is less than {least}, or no number")
        return value

    parse.__name__ = "number"  # argparse names it where the text is none
    return parse


if __name__ == "__main__":
    sys.exit(main())
