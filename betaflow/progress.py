"""Progress with rate and ETA: a bar on a terminal, plain lines elsewhere.

Under the flow (`BETAFLOW_PROGRESS=lines`) a line is meant for a program:
`@progress LABEL DONE/TOTAL UNIT key=value ...`; the flow turns it into its own bars.
"""

from __future__ import annotations

import os
import sys
import time

from tqdm import tqdm

LINES_EVERY = 2.0
PLAIN_EVERY = 10.0


class track:
    """Show how far a loop of `total` steps has come.

    `quiet` shows nothing: of many processes that train together one reports.

    Example::

        with track(100, "sft", "step") as progress:
            progress.update(1, loss=0.7)  # one done in all
    """

    def __init__(
        self, total: int, label: str, unit: str = "step", start: int = 0, quiet: bool = False
    ) -> None:
        self.total, self.label, self.unit, self.start = total, label, unit, start
        self.quiet = quiet
        self.began = time.monotonic()
        self.shown = 0.0
        self.lines = os.environ.get("BETAFLOW_PROGRESS") == "lines"
        terminal = sys.stderr.isatty() and not self.lines and not quiet
        self.bar = tqdm(total=total, desc=label, unit=unit, initial=start) if terminal else None

    def update(self, done: int, **info: float) -> None:
        """Report that `done` of the total are done, with a few figures to show."""
        if self.bar is not None:
            self.bar.set_postfix({k: f"{v:.4g}" for k, v in info.items()}, refresh=False)
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if self.quiet:
            return
        every = LINES_EVERY if self.lines else PLAIN_EVERY
        if now - self.shown < every and done < self.total:
            return
        self.shown = now
        figures = " ".join(f"{k}={v:.4g}" for k, v in info.items())
        if self.lines:
            text = f"@progress {self.label} {done}/{self.total} {self.unit} {figures}"
        else:
            rate = (done - self.start) / max(now - self.began, 1e-9)
            left = (self.total - done) / rate if rate else float("inf")
            text = (
                f"{self.label}: {done}/{self.total} {self.unit}, {rate:.3g} {self.unit}/s, "
                f"{left:.0f} s left {figures}"
            )
        print(text.rstrip(), file=sys.stderr, flush=True)

    def __enter__(self) -> track:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()
