"""A world small enough to list: every completion's probability and reward are known exactly.

Six tokens and completions of at most three of them: 156 for each prompt. So the optimum of
E[r] - beta KL(pi || pi_ref) is known (Rafailov et al. 2023, equation 4), and so is what any policy
reaches. Tensors of policies are log-probabilities, `(prompts, completions)`, float64.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from betaflow.data.tokenise import Batch, Encoded, collate
from betaflow.policy.loading import device

PAD, BOS, EOS, VOCABULARY, LONGEST = 0, 1, 2, 6, 3
PROMPTS = [[BOS, 3], [BOS, 4, 3]]  # of two lengths, so that batches are padded on both sides

TOKENIZER = SimpleNamespace(
    pad_token_id=PAD, eos_token_id=EOS, decode=lambda ids, **_: " ".join(map(str, ids))
)


def _completions(start: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """Everything that can follow: up to EOS, or to the longest there may be."""
    if len(start) == LONGEST or start[-1:] == (EOS,):
        return [start]
    return [whole for token in range(VOCABULARY) for whole in _completions((*start, token))]


COMPLETIONS = _completions()
PLACE = {completion: n for n, completion in enumerate(COMPLETIONS)}
UNFINISHED = torch.tensor([float(each[-1] != EOS) for each in COMPLETIONS], dtype=torch.float64)


class World(NamedTuple):
    """The reference's folder, and a score of each completion `(prompts, completions)`."""

    folder: Path
    scores: torch.Tensor

    def score(self, episodes: list[Encoded]) -> torch.Tensor:
        """The scores of some episodes, `(episodes,)`."""
        rows = [PROMPTS.index(episode.prompt) for episode in episodes]
        places = [PLACE[tuple(episode.completion)] for episode in episodes]
        return self.scores[rows, places].float()


def make_world(folder: Path, seed: int) -> World:
    """A reference of random weights, and random scores.

    A score is a sum of parts: of the first token (by prompt), of each pair of neighbours, and of
    the completion as a whole. With the last part alone a network this small would have to learn
    312 numbers by heart, which takes minutes.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)  # next-token distributions that are not all alike
    model.save_pretrained(folder)
    first = torch.randn(len(PROMPTS), VOCABULARY, dtype=torch.float64)
    pair = torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64)
    scores = 0.2 * torch.randn(len(PROMPTS), len(COMPLETIONS), dtype=torch.float64)
    for n, tokens in enumerate(COMPLETIONS):
        scores[:, n] += first[:, tokens[0]]
        scores[:, n] += sum(float(pair[a, b]) for a, b in pairwise(tokens))
    return World(folder, 3 + 2 * scores)  # far from mean 0 and variance 1


def every_sequence() -> Batch:
    """Each prompt with each completion, `(prompts x completions, tokens)`."""
    sequences = [Encoded(prompt, list(each)) for prompt in PROMPTS for each in COMPLETIONS]
    return collate(sequences, PAD).to(device())


def token_logps(model: nn.Module) -> torch.Tensor:
    """log pi of each token of `every_sequence`, from the model's plain output; differentiable."""
    batch = every_sequence()
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    tokens = torch.log_softmax(logits[:, :-1].double(), -1)
    taken = tokens.gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    return (taken * batch.completion_mask[:, 1:]).cpu()


def by_prompt(values: torch.Tensor) -> torch.Tensor:
    """Sums over the tokens of `every_sequence`, `(prompts, completions)`."""
    return values.sum(-1).view(len(PROMPTS), len(COMPLETIONS))


@torch.no_grad()
def policy_of(model: nn.Module) -> torch.Tensor:
    """log pi of every completion."""
    return by_prompt(token_logps(model))


def expected(policy: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Mean of `values` over a policy's completions and over prompts, a scalar."""
    return (policy.exp() * values).sum(-1).mean()


class Problem(NamedTuple):
    """Rewards and log pi_ref: what is to be gained from them, and at what KL."""

    rewards: torch.Tensor
    reference: torch.Tensor

    def reward(self, policy: torch.Tensor) -> float:
        """E[r]."""
        return float(expected(policy, self.rewards))

    def kl(self, policy: torch.Tensor) -> float:
        """KL(pi || pi_ref), nats a completion."""
        return float(expected(policy, policy - self.reference))

    def value(self, policy: torch.Tensor, beta: float) -> float:
        """E[r] - beta KL(pi || pi_ref)."""
        return self.reward(policy) - beta * self.kl(policy)

    def optimum(self, beta: float) -> torch.Tensor:
        """log pi* = log pi_ref + r / beta - log Z."""
        return torch.log_softmax(self.reference + self.rewards / beta, -1)

    def best(self, beta: float) -> float:
        """The greatest value there is: beta E_x log Z(x)."""
        return float(beta * torch.logsumexp(self.reference + self.rewards / beta, -1).mean())

    def frontier(self, kl: float) -> float:
        """The greatest expected reward at a KL: pi*'s, at the beta that has it (by bisection)."""
        low, high = 1e-2, 1e3
        for _ in range(100):
            beta = (low * high) ** 0.5
            low, high = (beta, high) if self.kl(self.optimum(beta)) > kl else (low, beta)
        return self.reward(self.optimum(high))
