"""Which held-out labels the experiment on unlabelled prompts may read.

They choose the weights where training stops early, so a share of labels is one of these too; and
none is of a prompt that the policies are scored on.
"""

from __future__ import annotations

from typing import Any

from betaflow.config import Params
from betaflow.data.labelled import kept_pairs
from betaflow.errors import UserError
from betaflow.io import read_jsonl
from tasks._inputs import held_out_prompts


def held_out_places(params: Params, tokenizer: Any, share: float) -> list[int]:
    """Places in out/pairs/eval.jsonl of the share's pairs, of the prompts that are not scored.

    Raises:
        UserError: every held-out prompt is scored.
    """
    scored = held_out_prompts(tokenizer, params.pairs.max_prompt_tokens, params.sample.prompts)
    rows = read_jsonl("out/pairs/eval.jsonl")
    places, _ = kept_pairs(rows, share, without=[row["text"] for row in scored])
    if not places:
        raise UserError(
            "the policies are scored on every held-out prompt that has pairs, and none is left to "
            "stop training by; lower sample.prompts or raise data.eval_fraction"
        )
    return places
