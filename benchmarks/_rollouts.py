"""What both PPO workers share: stamps of an iteration's phases, and what each rollout drew.

Only torch and the standard library: TRL's worker runs in an environment without betaflow.
"""

from __future__ import annotations

from typing import Any

from _measure import peak_bytes, progress, stamp
from torch.optim.optimizer import register_optimizer_step_post_hook

PHASES = ("rollout", "scoring", "update")

Drawn = list[tuple[list[int], list[int]]]  # prompt and completion of each episode


class Watch:
    """Stamps at the end of each iteration's phases; a phase begins where the one before ends.

    So the phases add up to the whole, what a library does between them included. Where a phase's
    end is marked more than once in an iteration (a chunk at a time), the last one counts.
    """

    def __init__(self, label: str, rollouts: int) -> None:
        self.label, self.rollouts = label, rollouts
        self.optimizer_steps = self.peak = 0
        self.stamps: list[list[tuple[float, float]]] = []
        self._ends: dict[str, tuple[float, float]] = {}
        register_optimizer_step_post_hook(self._count)

    def begin(self) -> None:
        """Training starts here: models are loaded."""
        self._last = stamp()

    def ends(self, phase: str) -> None:
        self._ends[phase] = stamp()

    def iteration_ends(self) -> None:
        self.ends("update")
        self.stamps.append([self._last, *(self._ends[phase] for phase in PHASES)])
        self._last = self._ends["update"]
        self.peak = peak_bytes()
        seconds = self.stamps[-1][-1][0] - self.stamps[-1][0][0]
        progress(self.label, len(self.stamps), self.rollouts, seconds, None)

    def figures(self) -> dict[str, Any]:
        """Seconds of each phase and processor time of each iteration, and what goes with them."""
        return {
            "phase_seconds": [
                {phase: ends[i + 1][0] - ends[i][0] for i, phase in enumerate(PHASES)}
                for ends in self.stamps
            ],
            "cpu_seconds": [ends[-1][1] - ends[0][1] for ends in self.stamps],
            "optimizer_steps": self.optimizer_steps,
            "peak_bytes": self.peak,
        }

    def _count(self, *_: Any) -> None:
        self.optimizer_steps += 1


def drawn_figures(drawn: list[Drawn], eos: int) -> dict[str, Any]:
    """Lengths (EOS included) of every rollout's completions, and the first rollout whole."""
    return {
        "lengths": [[len(completion) for _, completion in rollout] for rollout in drawn],
        "finished": [sum(c[-1:] == [eos] for _, c in rollout) / len(rollout) for rollout in drawn],
        "first_episodes": drawn[0],
    }
