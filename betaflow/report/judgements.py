"""What the judge was asked and what it said: `out/judgements`.

A judge by score leaves its controls alone there, since the samples' own columns say the rest. A
language model leaves every verdict, and they join the samples as columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from betaflow.config import Arm, CompareSettings
from betaflow.errors import UserError
from betaflow.evaluation.controls import CONFIDENCE, control_rows, failed
from betaflow.evaluation.judges import VERDICT, missing_reasons, order_effects
from betaflow.evaluation.win_rate import KEYS, paired
from betaflow.report.estimates import KL_TEMPERATURE, at, baselines, spread

Document = dict[str, Any]
PAIR_KEYS = ["arm", "baseline", *KEYS]


def compared_pairs(arms: Sequence[Arm], samples: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Every pair that the comparison is about: of each arm with each baseline, in domain.

    Returns:
        Columns of `PAIR_KEYS` (baseline: `sft` or `ppo`), prompt, completion_a (the arm's) and
        completion_b.
    """
    inside = {arm.name: samples[arm.name].query("domain == 'in'") for arm in arms}
    tables = []
    for arm in arms:
        own = inside[arm.name]
        for name, other in baselines(arms).items():
            if other is not None:
                against = at(inside[other], own["temperature"].unique())
                pairs = paired(own, against, ["completion"])
                pairs["prompt"] = own["prompt"].to_numpy()
                tables.append(pairs.assign(arm=arm.name, baseline=name))
    columns = [*PAIR_KEYS, "prompt", "completion_a", "completion_b"]
    return pd.concat(tables, ignore_index=True)[columns]


def control_samples(sft: pd.DataFrame) -> pd.DataFrame:
    """The draws that the controls are made of: SFT's, in domain, at T = 1."""
    return sft[(sft["domain"] == "in") & (sft["temperature"] == KL_TEMPERATURE)]


def judgements(
    compared: pd.DataFrame,
    controls: pd.DataFrame,
    verdicts: pd.DataFrame,
    settings: CompareSettings,
) -> Document:
    """The document `summary.json`, before rounding; `docs/judges.md` explains its keys.

    Args:
        compared: of `compared_pairs`; empty where the judge is a score.
        controls: of `control_pairs`.
        verdicts: the judge's on `compared`, and then on `controls`.
    """
    asked = verdicts.iloc[: len(compared)].reset_index(drop=True)
    told = verdicts.iloc[len(compared) :].reset_index(drop=True)
    resampled = {"resamples": settings.bootstrap, "seed": settings.seed}
    named = asked.assign(prompt_id=compared["prompt_id"].to_numpy())
    rows = control_rows(controls, told, named, settings.controls, **resampled)
    every = pd.concat([named, told.assign(prompt_id=controls["prompt_id"].to_numpy())])
    effects = order_effects(every, every["prompt_id"], confidence=settings.confidence, **resampled)
    order = {"pairs": effects.pairs, **spread("consistency", effects.consistency)}
    return {
        "judge": settings.judge,
        "model": settings.llm.model if settings.judge == "llm" and settings.llm else None,
        "template": settings.llm.template if settings.judge == "llm" and settings.llm else None,
        "pairs": len(verdicts),
        "missing": missing_reasons(verdicts),
        "order": order | spread("first", effects.first) if effects.pairs else None,
        "controls": {
            "passed": not failed(rows),
            "failed": failed(rows),
            "confidence": CONFIDENCE,
            "rows": rows,
        },
    }


def with_verdicts(
    samples: Mapping[str, pd.DataFrame], verdicts: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Samples with `preference_vs_sft` and `preference_vs_ppo`, as far as there is a baseline.

    Args:
        samples: by arm name, its scored completions.
        verdicts: `verdicts.parquet`: columns of `PAIR_KEYS` and `VERDICT`.

    Raises:
        UserError: an in-domain sample was not judged, or there is no verdict at all on an arm's
            samples at some temperature.
    """
    found = dict(samples)
    for (name, baseline), own in verdicts.groupby(["arm", "baseline"], sort=False):
        if name not in found:
            continue
        column = f"preference_vs_{baseline}"
        judged = own[[*KEYS, "preference"]].rename(columns={"preference": column})
        found[name] = found[name].merge(judged, on=KEYS, how="left", indicator="judged")
        inside = found[name]["domain"] == "in"
        if (found[name].loc[inside, "judged"] != "both").any():
            raise UserError(f"not all samples of {name} were judged; run `dvc repro judge`")
        found[name] = found[name].drop(columns="judged")
        told = judged.groupby("temperature")[column].count()
        if (told == 0).any():
            raise UserError(
                f"the judge gave no verdict on {name} against {baseline} at T = "
                f"{told.idxmin():g}; out/judgements/summary.json says why"
            )
    if lacking := [name for name in samples if "preference_vs_sft" not in found[name]]:
        raise UserError(f"{lacking[0]} was not judged; run `dvc repro judge`")
    return found


def verdict_table(compared: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """`verdicts.parquet`: the verdicts on `compared`, with what they are about."""
    own = verdicts.iloc[: len(compared)].reset_index(drop=True)
    return pd.concat([compared[PAIR_KEYS].reset_index(drop=True), own[VERDICT]], axis=1)


def no_pairs() -> pd.DataFrame:
    """`compared_pairs` of a judge by score: none."""
    types = dict.fromkeys(PAIR_KEYS, "str") | {"temperature": "float64", "seed": "int64"}
    columns = [*PAIR_KEYS, "prompt", "completion_a", "completion_b"]
    empty = {name: np.array([], dtype="object") for name in columns}
    return pd.DataFrame(empty).astype(types)
