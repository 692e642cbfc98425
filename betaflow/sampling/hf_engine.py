"""The Hugging Face engine: draws and scores in batches of like length."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from betaflow.data.tokenise import Encoded, collate, completion_text
from betaflow.policy.lanes import side_by_side
from betaflow.policy.loading import device, load_policy, load_tokenizer, text_config
from betaflow.policy.logps import by_length, scatter, token_logits
from betaflow.policy.packing import require_positions
from betaflow.sampling.decode import Drawn, decode, decodes, generate
from betaflow.sampling.engine import Completion, Request, Scored


class HFEngine:
    """Completes and scores with a transformers model, its own or one that is being trained."""

    name = "hf"

    def __init__(self, model: nn.Module, tokenizer: Any, batch_size: int) -> None:
        self.model: Any = model
        self.tokenizer, self.batch_size = tokenizer, batch_size
        config = text_config(model.config)
        self.max_length = int(getattr(config, "max_position_embeddings", 0) or 2048)

    @classmethod
    def load(
        cls, path: str | Path, *, batch_size: int, trust_remote_code: bool = False
    ) -> HFEngine:
        """Load a model folder or hub name."""
        return cls(
            load_policy(path, trust_remote_code=trust_remote_code).eval(),
            load_tokenizer(path, trust_remote_code=trust_remote_code),
            batch_size,
        )

    def generate(self, requests: list[Request]) -> list[Completion]:
        """Draw in batches of one temperature and budget.

        Raises `UserError` if the model has not the positions of prompt and budget.
        """
        found: list[Completion | None] = [None] * len(requests)
        kinds: dict[tuple[float, int], list[int]] = {}
        for index, request in enumerate(requests):
            kinds.setdefault((request.temperature, request.max_new_tokens), []).append(index)
        for (temperature, budget), members in kinds.items():
            encoded = [Encoded(requests[i].prompt_ids, []) for i in members]
            longest = max(one.length for one in encoded) + budget
            require_positions(self.model.config, longest, "the prompts' limit or max_new_tokens")
            groups = [[members[i] for i in g] for g in by_length(encoded, self.batch_size)]
            jobs = [
                partial(self._draw, [requests[i] for i in g], temperature, budget) for g in groups
            ]
            # `generate` draws by torch's own generator, which threads would share.
            drawn = side_by_side(jobs) if decodes(self.model) else [job() for job in jobs]
            for group, completions in zip(groups, drawn, strict=True):
                for index, completion in zip(group, completions, strict=True):
                    found[index] = completion
        return [completion for completion in found if completion is not None]

    @torch.inference_mode()
    def _draw(self, requests: list[Request], temperature: float, budget: int) -> list[Completion]:
        draw = decode if decodes(self.model) else generate
        drawn = draw(
            self.model,
            [r.prompt_ids for r in requests],
            [r.seed for r in requests],
            temperature=temperature,
            budget=budget,
            eos=self.tokenizer.eos_token_id,
            pad=self.tokenizer.pad_token_id,
        )
        return [self._completion(*one) for one in zip(requests, drawn, strict=True)]

    def _completion(self, request: Request, drawn: Drawn) -> Completion:
        text = completion_text(self.tokenizer, request.prompt_ids, drawn.token_ids)
        stopped = drawn.token_ids[-1] == self.tokenizer.eos_token_id
        return Completion(drawn.token_ids, text, "stop" if stopped else "length", drawn.logprob)

    @torch.inference_mode()
    def score(self, pairs: list[tuple[list[int], list[int]]]) -> list[Scored]:
        """Score by one forward pass a batch."""
        sequences = [Encoded(context, continuation) for context, continuation in pairs]
        found: list[Scored | None] = [None] * len(pairs)
        for group in by_length(sequences, self.batch_size):
            batch = collate([sequences[i] for i in group], self.tokenizer.pad_token_id).to(device())
            logits, targets = token_logits(self.model, batch)
            mask = batch.completion_mask[:, 1:]
            logps = torch.log_softmax(logits, -1).gather(-1, targets[:, None]).squeeze(-1)
            sums = scatter(logps, mask).sum(-1)
            wrong = scatter((logits.argmax(-1) != targets).float(), mask).sum(-1)
            for row, index in enumerate(group):
                found[index] = Scored(float(sums[row]), bool(wrong[row] == 0))
        return [scored for scored in found if scored is not None]
