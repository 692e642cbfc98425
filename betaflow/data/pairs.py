"""Preference pairs ready for training: rendered text, and which completions ended with EOS."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from betaflow.data.chat import render
from betaflow.data.tokenise import Encoded, Limits, cut_pair, encode
from betaflow.errors import UserError
from betaflow.objectives.bradley_terry import preference_probability
from betaflow.progress import track

if TYPE_CHECKING:
    from betaflow.config import PairsSettings
    from betaflow.sampling.engine import Completion, Engine

Row = dict[str, Any]
CHUNK = 256


def sampled_pairs(
    prompts: list[Row],
    engine: Engine,
    gold_reward: Callable[[str], float],
    settings: PairsSettings,
) -> tuple[list[Row], dict[str, float]]:
    """Draw completions for each prompt and label pairs of them by Bradley-Terry.

    Args:
        prompts: rows with `id`, `text` and token `ids`.
        gold_reward: the reward of a whole text (prompt and completion).

    Returns:
        Pair rows, and figures: how many prompts, completions and pairs, what was dropped, and
        how often the label went against the gold reward (the noise Bradley-Terry puts in).
    """
    rows: list[Row] = []
    counts: Counter[str] = Counter()
    with track(len(prompts), "pairs", "prompt") as progress:
        for start in range(0, len(prompts), CHUNK):
            for prompt, drawn in _draw(prompts[start : start + CHUNK], engine, settings):
                texts = [completion.text for completion in drawn]
                rewards = [gold_reward(prompt["text"] + text) for text in texts]
                rng = random.Random(f"{settings.seed}/{prompt['id']}")
                found = list(combinations(range(len(drawn)), 2))
                for first, second in rng.sample(found, settings.pairs_per_prompt):
                    if texts[first] == texts[second] or not (texts[first] and texts[second]):
                        counts["dropped_equal_or_empty"] += 1
                        continue
                    chosen, rejected = bradley_terry_label(rewards, first, second, rng)
                    counts["label_against_gold"] += rewards[chosen] < rewards[rejected]
                    rows.append(_row(prompt, drawn, rewards, chosen, rejected))
            done = min(start + CHUNK, len(prompts))
            counts["prompts"] = done
            counts["completions"] = done * settings.samples_per_prompt
            progress.update(done)
    return rows, {**counts, "pairs": len(rows)}


def _draw(
    prompts: list[Row], engine: Engine, settings: PairsSettings
) -> list[tuple[Row, list[Completion]]]:
    from betaflow.sampling.engine import Request

    draws = settings.samples_per_prompt
    requests = [
        Request(
            prompt["ids"],
            settings.temperature,
            int(hashlib.sha256(f"{settings.seed}/{prompt['id']}/{n}".encode()).hexdigest()[:7], 16),
            settings.max_new_tokens,
        )
        for prompt in prompts
        for n in range(draws)
    ]
    drawn = engine.generate(requests)
    return [(prompt, drawn[i * draws : (i + 1) * draws]) for i, prompt in enumerate(prompts)]


def bradley_terry_label(
    rewards: Sequence[float], first: int, second: int, rng: random.Random
) -> tuple[int, int]:
    """Draw which of two completions is preferred, with probability sigma(r_1 - r_2).

    Returns:
        The places of the preferred one and of the other.
    """
    import torch

    gap = torch.tensor([rewards[first], rewards[second]], dtype=torch.float64)
    prefers_first = rng.random() < float(preference_probability(gap[0], gap[1]))
    return (first, second) if prefers_first else (second, first)


def _row(
    prompt: Row, drawn: list[Completion], rewards: list[float], chosen: int, rejected: int
) -> Row:
    texts = drawn[chosen].text, drawn[rejected].text
    return {
        "id": _pair_id(prompt["text"], *texts),
        "prompt": prompt["text"],
        "chosen": texts[0],
        "rejected": texts[1],
        "chosen_finished": drawn[chosen].finish_reason == "stop",
        "rejected_finished": drawn[rejected].finish_reason == "stop",
        "chosen_reward": rewards[chosen],
        "rejected_reward": rewards[rejected],
    }


def _pair_id(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def human_pairs(
    given: list[Row], tokenizer: Any, settings: PairsSettings
) -> tuple[list[Row], dict[str, float]]:
    """Render human pairs; leave out those that are too long, or that a cut made useless.

    Rows keep their whole text. Stages that encode them cut them by the same limits (`cut_pair`).

    Returns:
        Pair rows, and figures: the pairs, how many of them have a prompt or a completion that is
        cut (`cut_*`), and how many others were left out, by reason (`dropped_*`): too long; a
        prompt of which the cut left nothing, BOS apart; completions of equal tokens, be it
        before the cut or only after it.
    """
    limits = Limits.of(settings)
    rows: list[Row] = []
    counts: Counter[str] = Counter()
    for row in given:
        prompt, chosen = render(tokenizer, row["prompt"], row["chosen"])
        _, rejected = render(tokenizer, row["prompt"], row["rejected"])
        whole = [encode(tokenizer, prompt, text) for text in (chosen, rejected)]
        sides = cut_pair(whole[0], whole[1], limits, tokenizer.bos_token_id)
        cuts = [
            f"cut_{part}"
            for part in ("prompt", "completion")
            if any(getattr(a, part) != getattr(b, part) for a, b in zip(whole, sides, strict=True))
        ]
        if fault := _fault(sides, cuts, limits, tokenizer.bos_token_id):
            counts[f"dropped_{fault}"] += 1
            continue
        counts.update(cuts)
        rows.append(
            {
                "id": row["id"],
                "prompt": prompt,
                "chosen": chosen,
                "rejected": rejected,
                "chosen_finished": True,
                "rejected_finished": True,
            }
        )
    if given and not rows:
        raise UserError(
            f"every one of {len(given)} pairs was dropped ({dict(counts)}); raise "
            "pairs.max_prompt_tokens or pairs.max_completion_tokens, or cut (pairs.truncation)"
        )
    return rows, {**counts, "pairs": len(rows)}


def _fault(
    sides: tuple[Encoded, Encoded], cuts: list[str], limits: Limits, bos: int | None
) -> str | None:
    """Why a pair that `cut_pair` returned is of no use."""
    if max(len(side.prompt) for side in sides) > limits.max_prompt_tokens:
        return "long_prompt"
    if max(len(side.completion) for side in sides) > limits.max_completion_tokens:
        return "long_completion"
    if "cut_prompt" in cuts and any(side.prompt in ([], [bos]) for side in sides):
        return "emptied"
    if not all(side.prompt for side in sides):
        return "no_prompt"  # nothing would predict the completion's first token
    if sides[0].completion == sides[1].completion:
        return "equal_tokens"
    return None
