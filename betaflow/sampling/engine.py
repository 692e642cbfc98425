"""What an engine does, whichever it is: complete prompts, and score given tokens.

Log-probabilities are the model's own, at T = 1 and over the full vocabulary, whatever the
temperature of the draw.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn


class Request(NamedTuple):
    """One completion to draw. `temperature` 0 is greedy."""

    prompt_ids: list[int]
    temperature: float
    seed: int
    max_new_tokens: int


def draw_seed(*parts: str | int) -> int:
    """The seed of a draw that is told by all of `parts`, below 2^63: other parts, another draw."""
    name = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 1


class Completion(NamedTuple):
    """A drawn completion; `token_ids` ends with EOS where `finish_reason` is `stop`."""

    token_ids: list[int]
    text: str
    finish_reason: str
    logprob: float


class Scored(NamedTuple):
    """Summed log-probability of a continuation (nats), and whether greedy decoding gives it."""

    logprob: float
    is_greedy: bool


class Engine(Protocol):
    """A loaded model that completes and scores token sequences."""

    name: str
    tokenizer: Any
    max_length: int

    def generate(self, requests: list[Request]) -> list[Completion]:
        """Draw a completion for each request, in order. The same requests draw the same."""

    def score(self, pairs: list[tuple[list[int], list[int]]]) -> list[Scored]:
        """Score each (context, continuation) of token ids; a context has at least one token."""


@runtime_checkable
class HoldsWeights(Protocol):
    """An engine with weights of its own; one without draws from the very model in training."""

    def load_weights(self, model: nn.Module) -> None:
        """Take over `model`'s weights: from here on draws and scores are of `model` as it is now.

        `model` is of the architecture and sizes that the engine was opened with; its precision
        may differ. It must be called again after each change of `model`: use `hand_over`, which
        checks that the weights arrived.
        """


def open_engine(
    name: str,
    path: str | Path,
    *,
    threads: int,
    precision: str = "float32",
    batch_size: int = 64,
    trust_remote_code: bool = False,
) -> Engine:
    """Load a model into the engine of that name, `vllm` or `hf`. Never falls back on the other."""
    if name == "vllm":
        from betaflow.sampling.vllm_engine import VLLMEngine

        return VLLMEngine(
            path, threads=threads, precision=precision, trust_remote_code=trust_remote_code
        )
    from betaflow.sampling.hf_engine import HFEngine

    return HFEngine.load(path, batch_size=batch_size, trust_remote_code=trust_remote_code)
