"""An auxiliary head that tells a completion's reward from the policy's hidden states.

A policy that is trained by one number a completion first learns which words earn reward, whatever
stands before them, and only slowly to look back: a reference that was never told of the reward may
have no hidden state that does. The head is a linear map of every state and has a loss at every
token, so it teaches the policy to keep such states (Jaderberg et al. 2017; in RLHF a critic that
shares the policy's body does the same). Only the policy is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax

from betaflow.data.tokenise import Encoded
from betaflow.errors import UserError
from betaflow.policy.head import Head, head_of
from betaflow.policy.loading import autocast
from betaflow.policy.scorer import Scorer

HOLD = 0.3  # weight of the KL, nats, beside the value loss, in the reward's unit squared


def new_head(scorer: Scorer) -> nn.Linear:
    """A head that tells 0 of every state. Raises `UserError` where logits are no map of states."""
    if head_of(scorer.policy) is None:
        raise UserError(
            f"{type(scorer.policy).__name__}: its logits are not a projection of its last hidden "
            "states; set dpo.online.value_steps to 0, or ppo.training.teach_states to false"
        )
    weights = scorer.policy.get_output_embeddings().weight
    head = nn.Linear(weights.shape[1], 1, device=weights.device)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head


def value_loss(
    scorer: Scorer,
    reference: Scorer,
    head: nn.Linear,
    rows: Sequence[Sequence[Encoded]],
    rewards: Sequence[Sequence[float]],
    *,
    budget: int,
    precision: str,
) -> dict[str, float]:
    """Add the gradient of value loss and `HOLD` times the KL to that of head and policy.

    Returns their means over completions. `value/loss`: (head - reward)^2, in the reward's unit
    squared, its mean over the states before each token, and that of the last of them, which has
    seen the most, added. `value/kl`: KL(pi_ref || pi) of the next token, exact over the vocabulary,
    summed over those states, nats.

    Args:
        rows, rewards: `(prompts, completions)`.
        budget: tokens a forward pass, padding included. Of each, both models' logits over the whole
            vocabulary are held in float32.
    """
    count = sum(map(len, rows))
    total = apart = 0.0
    for members in scorer.bins(rows, budget):
        groups = [rows[i] for i in members]
        with autocast(precision):
            states, lengths = scorer.states(scorer.batch(groups))
            ours = Head.of(scorer.policy).logits(states)
        with torch.no_grad(), autocast(precision):
            theirs = Head.of(reference.policy).logits(reference.states(reference.batch(groups))[0])
        wanted = torch.tensor([r for i in members for r in rewards[i]], device=states.device)
        with torch.autocast(states.device.type, enabled=False):
            told = head(states.float()).squeeze(-1)
        errors = (told - wanted.repeat_interleave(lengths)).square()
        mean = torch.segment_reduce(errors, "mean", lengths=lengths)
        loss = (mean + errors[lengths.cumsum(0) - 1]).sum() / count
        logps = log_softmax(ours, -1), log_softmax(theirs, -1)
        kl = kl_div(*logps, reduction="sum", log_target=True) / count
        (loss + HOLD * kl).backward()
        total, apart = total + loss.item(), apart + kl.item()
    return {"value/loss": total, "value/kl": apart}
