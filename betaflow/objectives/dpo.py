"""Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290) and the losses near it.

With w = (log pi / pi_ref)(y_w) and l = (log pi / pi_ref)(y_l) of a pair, and h = w - l:

    sigmoid    -log sigma(beta h), equation 7; with label_smoothing cDPO (Mitchell 2023, "A note
               on DPO with noisy preferences and relationship to IPO")
    robust     cDPO made unbiased under labels flipped at rate label_smoothing; it has no lower
               bound (Chowdhury et al. 2024, arXiv 2403.00409)
    ipo        (h - 1/(2 beta))^2 (Azar et al. 2023, arXiv 2310.12036, equation 17; beta is its tau)
    hinge      max(0, 1 - beta h) (SLiC: Zhao et al. 2023, arXiv 2305.10425, on log-ratios)
    sppo_hard  (w - 1/(2 beta))^2 + (l + 1/(2 beta))^2 (Wu et al. 2024, arXiv 2405.00675, equation
               4.7 with win probabilities 1 and 0)
    apo_zero   sigma(-beta w) + sigma(beta l) (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7)
    apo_down   sigma(beta w) + sigma(-beta h) (the same, equation 8)
    simpo      -log sigma(beta h - margin), where w and l are log pi / |y|, without a reference
               (Meng et al. 2024, arXiv 2405.14734, equation 6)

docs/derivation.md derives equation 7 and tabulates the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import logsigmoid

from betaflow.objectives.options import LOSSES, USED_BY, LossName, check_options

__all__ = [
    "LOSSES",
    "USED_BY",
    "DPOLoss",
    "LossName",
    "check_options",
    "dpo_loss",
    "gradient_weight",
]


class DPOLoss(NamedTuple):
    """Per-pair values, each `(pairs,)`. Rewards are detached."""

    losses: torch.Tensor
    chosen_rewards: torch.Tensor
    rejected_rewards: torch.Tensor


def dpo_loss(
    policy_chosen_logps: torch.Tensor,
    policy_rejected_logps: torch.Tensor,
    reference_chosen_logps: torch.Tensor | None,
    reference_rejected_logps: torch.Tensor | None,
    *,
    beta: float,
    loss: LossName = "sigmoid",
    label_smoothing: float = 0.0,
    length_normalised: bool = False,
    chosen_lengths: torch.Tensor | None = None,
    rejected_lengths: torch.Tensor | None = None,
    margin: float = 0.0,
) -> DPOLoss:
    """The loss of each pair, by the formulas at the top of this module.

    Args:
        policy_chosen_logps: summed log pi(y_w | x), nats, `(pairs,)`; the other three likewise.
        reference_chosen_logps: None will do for `simpo`, which ignores it; likewise for rejected.
        beta: strength of the KL constraint (tau of IPO, 1/eta of SPPO), positive.
        loss: one of `LOSSES`.
        label_smoothing: probability epsilon that a label is flipped; `sigmoid` and `robust`.
        length_normalised: divide each log-ratio by its completion's length; `sigmoid` and `ipo`.
            `simpo` always does, whatever this says.
        chosen_lengths: tokens that `policy_chosen_logps` sums over, `(pairs,)`, positive; likewise
            for rejected. Needed where lengths are used, ignored elsewhere.
        margin: SimPO's gamma, in units of the reward; `simpo`.

    Returns:
        The losses, and the implicit rewards beta log(pi / pi_ref) of both completions: divided by
        the completion's length if `length_normalised`; beta log(pi) / |y| for `simpo`.

    Raises:
        ValueError: what `check_options` refuses, or lengths or reference missing where needed.
    """
    check_options(
        loss,
        beta=beta,
        label_smoothing=label_smoothing,
        length_normalised=length_normalised,
        margin=margin,
    )
    chosen, rejected = policy_chosen_logps, policy_rejected_logps
    if loss != "simpo":
        if reference_chosen_logps is None or reference_rejected_logps is None:
            raise ValueError(f"loss {loss!r} needs the reference's log-probabilities")
        chosen = chosen - reference_chosen_logps
        rejected = rejected - reference_rejected_logps
    if length_normalised or loss == "simpo":
        if chosen_lengths is None or rejected_lengths is None:
            what = "loss 'simpo'" if loss == "simpo" else "length_normalised"
            raise ValueError(f"{what} needs chosen_lengths and rejected_lengths")
        chosen, rejected = chosen / chosen_lengths, rejected / rejected_lengths
    losses = _losses(loss, chosen, rejected, beta, label_smoothing, margin)
    return DPOLoss(losses, (beta * chosen).detach(), (beta * rejected).detach())


def _losses(
    loss: LossName,
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    beta: float,
    epsilon: float,
    margin: float,
) -> torch.Tensor:
    """Losses of pairs `(pairs,)` from their log-ratios (for `simpo`: log pi / |y|)."""
    h = chosen - rejected
    match loss:
        case "sigmoid":
            return -(1 - epsilon) * logsigmoid(beta * h) - epsilon * logsigmoid(-beta * h)
        case "robust":
            unscaled = -(1 - epsilon) * logsigmoid(beta * h) + epsilon * logsigmoid(-beta * h)
            return unscaled / (1 - 2 * epsilon)
        case "ipo":
            return (h - 1 / (2 * beta)) ** 2
        case "hinge":
            return torch.relu(1 - beta * h)
        case "sppo_hard":
            return (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2
        case "apo_zero":
            return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)
        case "apo_down":
            return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * h)
        case "simpo":
            return -logsigmoid(beta * h - margin)


def gradient_weight(chosen_rewards: torch.Tensor, rejected_rewards: torch.Tensor) -> torch.Tensor:
    """sigma(r_l - r_w), the weight of each pair in DPO's gradient (section 4), `(pairs,)`.

    It is that of the `sigmoid` loss without label smoothing: d loss / d log pi(y_w) = -beta times
    it. For the other losses it still says how wrongly the implicit reward orders a pair, 1/2 at a
    tie, but no longer scales their gradient.
    """
    return torch.sigmoid(rejected_rewards - chosen_rewards)
