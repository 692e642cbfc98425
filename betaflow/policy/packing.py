"""Sequences computed packed: whether a model can be, and how it then is.

Completions of shared prompts go into one row (`packed`). Whether a model can be computed so is
found by trying: on a few short sequences, packed against each alone. One that can't is computed
padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from betaflow.data.tokenise import Batch, Encoded, collate
from betaflow.errors import UserError
from betaflow.policy.attention import NAME, Layout
from betaflow.policy.loading import autocast, device, text_config
from betaflow.policy.packed import Packed, pack, tree_tokens
from betaflow.progress import track

Group = Sequence[Encoded]

# Tokens of prompt and completion, tree by tree, of the sequences that packing is tried on.
_PROBE = (((5, 4), (5, 3)), ((2, 6),))
# Rotary frequencies that depend on the longest sequence of a batch, beyond the first limit.
_DYNAMIC_ROPE = ("longrope", "dynamic")


class Batches(nn.Module):
    """Groups of sequences as a model's batches, packed where it can be, else padded.

    `packs`: sequences are packed and share their prompts; `reason`: why not, where they don't.
    The model's attention implementation is set accordingly.
    """

    def __init__(self, model: Any, pad: int, reason: str | None = None) -> None:
        super().__init__()
        self.pad, self.family, self.config = pad, type(model).__name__, model.config
        self.reason = reason or why_not_packed(model)
        self.packs = self.reason is None

    def explain(self) -> None:
        """Say so where sequences can't be packed, and why."""
        if self.reason is not None:
            print(
                f"{self.family}: sequences are padded and prompts not shared, "
                f"which is slower ({self.reason})",
                flush=True,
            )

    def computed(self, group: Group) -> int:
        """Tokens of a group that a pass computes, padding left out: packed, the prompt once."""
        return tree_tokens(group) if self.packs else sum(s.length for s in group)

    def cost(self, group: Group) -> int:
        """Tokens that a group takes by itself, padding included."""
        return self.computed(group) if self.packs else len(group) * max(s.length for s in group)

    def bins(self, groups: Sequence[Group], budget: int) -> list[list[int]]:
        """Indices of groups in batches of at most `budget` tokens, padding included.

        Like lengths lie together; a group that is longer than the budget goes alone.
        """
        costs = [self.cost(group) for group in groups]
        longest = [max(s.length for s in group) for group in groups]
        found: list[list[int]] = []
        rows = used = 0
        for i in sorted(range(len(groups)), key=lambda i: (longest[i], costs[i], i)):
            rows += len(groups[i])
            used = used + costs[i] if self.packs else rows * longest[i]
            if not found or used > budget:
                found.append([])
                rows, used = len(groups[i]), costs[i]
            found[-1].append(i)
        return found

    def batch(self, groups: Sequence[Group]) -> Packed | Batch:
        """Groups of sequences as tensors on this process's device; sequences keep their order."""
        longest = max(s.length for group in groups for s in group)
        require_positions(self.config, longest)
        if self.packs:
            return pack(groups).to(device())
        return collate([s for group in groups for s in group], self.pad).to(device())


def packed_hidden(model: Any, batch: Packed) -> torch.Tensor:
    """Last hidden states of a packed row, `(1, tokens, width)`."""
    # A mask of four dimensions is handed on untouched: no mask of tokens x tokens is made.
    unused = torch.empty((1, 1, 0, 0), device=batch.input_ids.device)
    hidden: torch.Tensor = model.base_model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=unused,
        use_cache=False,
        layout=Layout(batch.trees, batch.input_ids.device),
    ).last_hidden_state
    return hidden


@torch.no_grad()
def why_not_packed(model: Any) -> str | None:
    """Find out whether packed sequences get what each gets alone; None if they do, else why not.

    Sets the model's attention to the packed implementation if so, and leaves it as it was if
    not.
    """
    if getattr(model.config, "attention_chunk_size", None):
        return "its attention is cut into chunks of positions"
    before, training = model.config._attn_implementation, model.training
    try:
        model.eval()
        probe = _probe(text_config(model.config).vocab_size)
        alone = [_alone(model, sequence) for group in probe for sequence in group]
        model.set_attn_implementation(NAME)
        batch = pack(probe).to(device())
        alike = _alike(alone, packed_hidden(model, batch)[0], batch)
        model.train()
        packed_hidden(model, batch)  # refuses attention dropout, which evaluation leaves out
        reason = None if alike else "packed sequences get other hidden states than alone"
    except Exception as error:  # whatever a model's code raises on inputs it was not made for
        reason = str(error).strip().split("\n")[0] or type(error).__name__
    finally:
        model.train(training)
    if reason is not None:
        model.set_attn_implementation(before)
    return reason


def _probe(vocabulary: int) -> list[list[Encoded]]:
    """A few short sequences; those of a tree share their prompt."""
    found = []
    for tree in _PROBE:
        group = []
        for n, (prompt, completion) in enumerate(tree):
            ids = [7 * i % vocabulary for i in range(1, prompt + 1)]
            group.append(Encoded(ids, [(7 * i + 3 + n) % vocabulary for i in range(completion)]))
        found.append(group)
    return found


def _alone(model: Any, sequence: Encoded) -> torch.Tensor:
    ids = torch.tensor([sequence.prompt + sequence.completion], device=device())
    hidden: torch.Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    return hidden


def _alike(alone: list[torch.Tensor], packed: torch.Tensor, batch: Packed) -> bool:
    """Whether each sequence's hidden states are the same, packed and alone."""
    at, rest = 0, iter(alone)
    for prefix, branches in batch.trees:
        shared, at = packed[at : at + prefix], at + prefix
        for branch in branches:
            ours, own = torch.cat([shared, packed[at : at + branch]]), next(rest)
            at += branch
            if not torch.allclose(ours, own, rtol=1e-3, atol=1e-4 * float(own.abs().max())):
                return False
    return True


def require_positions(
    config: Any,
    longest: int,
    keys: str = "pairs.max_prompt_tokens or pairs.max_completion_tokens",
    *,
    what: str = "a sequence",
) -> None:
    """Stop on a sequence longer than the positions a model was made for.

    Where rotary frequencies change beyond a first limit, that is the limit: a sequence's
    log-probabilities would depend on what else is in its batch.
    """
    config = text_config(config)
    limit = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in _DYNAMIC_ROPE:
        first = getattr(config, "original_max_position_embeddings", None)
        limit = first or rope.get("original_max_position_embeddings") or limit
    if limit is not None and longest > limit:
        raise UserError(
            f"{what} of {longest} tokens is longer than the {limit} positions of the model; "
            f"lower {keys}"
        )


MOST_BRANCHES = 8  # of a tree in `all_sequences`: the mask grows with their square


@torch.no_grad()
def all_sequences(
    scorer: Batches, sequences: Sequence[Encoded], *, budget: int, precision: str, label: str = ""
) -> torch.Tensor:
    """What a scorer says of any number of sequences, `(sequences,)`, on the CPU, in their order.

    A prompt is computed once for completions that share it, and a sequence given twice once.

    Args:
        scorer: gives one value a sequence, as `Scorer` and `RewardScorer` do.
        budget: tokens a forward pass, padding included.
        label: shown with the progress; empty: no progress.
    """
    places = _by_prompt(sequences)
    groups = [[sequences[same[0]] for same in group] for group in places]
    found = torch.zeros(len(sequences))
    bins = scorer.bins(groups, budget)
    with track(len(bins), label, "batch", quiet=not label) as progress:
        for done, members in enumerate(bins):
            with autocast(precision):
                values = scorer(scorer.batch([groups[i] for i in members])).cpu()
            same_each = [same for i in members for same in places[i]]
            for value, same in zip(values, same_each, strict=True):
                found[same] = value
            progress.update(done + 1)
    return found


def all_computed(scorer: Batches, sequences: Sequence[Encoded]) -> int:
    """Tokens that `all_sequences` computes of these, padding left out."""
    groups = _by_prompt(sequences)
    return sum(scorer.computed([sequences[same[0]] for same in group]) for group in groups)


def _by_prompt(sequences: Sequence[Encoded]) -> list[list[list[int]]]:
    """Groups of completions of a prompt, each completion as the places where it stands."""
    of_prompt: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
    for index, (prompt, completion) in enumerate(sequences):
        completions = of_prompt.setdefault(tuple(prompt), {})
        completions.setdefault(tuple(completion), []).append(index)
    groups: list[list[list[int]]] = []
    for completions in of_prompt.values():
        every = list(completions.values())
        groups += [every[i : i + MOST_BRANCHES] for i in range(0, len(every), MOST_BRANCHES)]
    return groups
