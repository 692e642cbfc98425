"""What a run by hand shows: bars on a terminal, plain lines elsewhere, nothing in a worker."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text

PLAIN_EVERY = 10.0  # seconds between two lines of one stage's progress

_PROGRESS = re.compile(r"@progress (\S+) (\d+)/(\d+) ?(\S*) ?(.*)")
_DVC_CHATTER = re.compile(
    r"Running stage |> python |Updating lock file|Generating lock file|To track the changes|"
    r"\s+git add|To enable auto staging|\s+dvc config core|Use `dvc push`|"
    r"ERROR: failed to reproduce |Stage '.*' didn't change|Data and pipelines are up to date"
)


@dataclass
class Meter:
    """How far one loop of a stage has come, from its `@progress` lines."""

    label: str
    total: int
    unit: str
    done: int
    figures: str = ""
    began_at: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def pace(self) -> str:
        """Rate and time left, once there is something to tell them from."""
        seconds = time.monotonic() - self.began
        rate = (self.done - self.began_at) / seconds if seconds > 0 else 0.0
        if rate <= 0:
            return ""
        return f"{rate:.3g} {self.unit}/s, {duration((self.total - self.done) / rate)} left"


def read_progress(line: str, before: Meter | None) -> Meter | None:
    """The meter after `line`, or None where it is an ordinary line."""
    match = _PROGRESS.match(line)
    if match is None:
        return None
    label, done, total, unit, figures = match.groups()
    meter = Meter(label, int(total), unit or "step", int(done), figures, began_at=int(done))
    if before and (before.label, before.total) == (meter.label, meter.total):
        meter.began, meter.began_at = before.began, before.began_at
    return meter


def is_chatter(line: str) -> bool:
    """Whether a line is DVC's own talk, which tells a reader nothing that we don't tell."""
    return bool(_DVC_CHATTER.match(line))


def duration(seconds: float) -> str:
    """`42 s`, `3:05` or `1:02:03`."""
    whole = round(seconds)
    minutes, hours = whole // 60 % 60, whole // 3600
    if hours:
        return f"{hours}:{minutes:02}:{whole % 60:02}"
    return f"{minutes}:{whole % 60:02}" if minutes else f"{whole} s"


class Display:
    """Shows nothing: in a worker the Prefect log is the display."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def plan(self, clean: int, dirty: int) -> None:
        """Say how many stages there are to run."""

    def say(self, text: str, style: str = "") -> None:
        """Show a line."""

    def started(self, stage: str) -> None:
        """A stage begins."""

    def progressed(self, stage: str, meter: Meter) -> None:
        """A stage told how far it is."""

    def finished(self, stage: str, mark: str, seconds: float) -> None:
        """A stage ended; `mark` is `done`, `failed`, `stopped` or `locked`."""


class Lines(Display):
    """One line for each thing that happens, and one every `PLAIN_EVERY` seconds of a loop."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total = self.ended = 0
        self.shown: dict[str, float] = {}
        self.lock = threading.Lock()

    def plan(self, clean: int, dirty: int) -> None:
        """Say how many stages there are to run."""
        self.total = dirty
        self.say(f"{dirty} stages to run, {clean} up to date")

    def say(self, text: str, style: str = "") -> None:
        """Print a line."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def started(self, stage: str) -> None:
        """Print that a stage begins."""
        self.say(f"  start   {stage}")

    def progressed(self, stage: str, meter: Meter) -> None:
        """Print a stage's progress, if the last was long ago."""
        now = time.monotonic()
        if now - self.shown.setdefault(stage, meter.began) < PLAIN_EVERY:
            return
        self.shown[stage] = now
        text = f"{meter.done}/{meter.total} {meter.unit}, {meter.pace} {meter.figures}"
        self.say(f"  ...     {stage}: {text}".rstrip())

    def finished(self, stage: str, mark: str, seconds: float) -> None:
        """Print how a stage ended, and how many have."""
        with self.lock:
            self.ended += mark in ("done", "failed")
            count = f"[{self.ended}/{self.total}]"
        self.say(f"  {mark:<7} {stage} in {duration(seconds)} {count}", _STYLES[mark])


class Bars(Lines):
    """A live row for each running stage, and a line for each one that ended."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False, style="dim"),
            console=console,
            transient=True,
            expand=False,
        )
        self.rows: dict[str, TaskID] = {}
        self.all: TaskID | None = None

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def plan(self, clean: int, dirty: int) -> None:
        """Add the row that counts stages."""
        super().plan(clean, dirty)
        self.all = self.bars.add_task("stages", total=dirty, text=f"0/{dirty}")

    def started(self, stage: str) -> None:
        """Add a stage's row."""
        self.rows[stage] = self.bars.add_task(stage, total=None, text="")

    def progressed(self, stage: str, meter: Meter) -> None:
        """Move a stage's bar."""
        text = f"{meter.done}/{meter.total} {meter.unit}, {meter.pace} {meter.figures}"
        row = self.rows.get(stage)
        if row is not None:
            self.bars.update(row, total=meter.total, completed=meter.done, text=text.rstrip(", "))

    def finished(self, stage: str, mark: str, seconds: float) -> None:
        """Replace a stage's row by a line."""
        super().finished(stage, mark, seconds)
        self.bars.remove_task(self.rows.pop(stage))
        if self.all is not None:
            self.bars.update(self.all, completed=self.ended, text=f"{self.ended}/{self.total}")


_STYLES = {"locked": "yellow", "done": "green", "failed": "bold red", "stopped": "yellow"}


def for_console(console: Console) -> Display:
    """Bars on a terminal, lines elsewhere."""
    return Bars(console) if console.is_terminal else Lines(console)
