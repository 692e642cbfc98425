"""The model card that a version carries: what it is, where it comes from, how it was judged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from betaflow.config import Arm, Params
from betaflow.evaluation.promotion import Rule
from betaflow.report.estimates import Row
from betaflow.report.html import settings_text
from betaflow.report.methods import label, setting
from betaflow.report.text import estimate, on_a_line, significant
from tasks.tracking import dvc_hashes, dvc_lock, git_tags

SHOWN = [  # column, what it is called, digits, scale
    ("win_rate_vs_sft", "wins vs SFT, %", 1, 100.0),
    ("lc_win_rate_vs_sft", "wins vs SFT at equal length, %", 1, 100.0),
    ("win_rate_vs_ppo", "wins vs PPO, %", 1, 100.0),
    ("gold_reward", "gold reward", 2, 1.0),
    ("reward_model", "reward model", 2, 1.0),
    ("kl", "KL, nats", 2, 1.0),
    ("completion_tokens", "tokens a completion", 1, 1.0),
]


def model_card(
    params: Params,
    arm: Arm,
    summary: Mapping[str, Any],
    rows: Sequence[Row],
    rules: Sequence[Rule],
    against: str,
    address: str,
) -> str:
    """Markdown with YAML front matter, as model hubs read it.

    Args:
        summary: the arm's `summary.json`.
        rows: the arm's rows of the comparison.
        rules: what the promotion found.
        against: the model that it was compared with.
        address: what MLflow loads these very weights by, whichever version is champion.
    """
    point = arm.model_dump(exclude_none=True)
    about: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["betaflow", "alignment", arm.method],
    }
    if params.model.base != "scratch":
        about["base_model"] = params.model.base
    name = f"{label(point)} at {setting(point)}" if setting(point) else label(point)
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(about, sort_keys=True)}---",
            f"# {params.run.registered_model}: {arm.name}\n",
            f"{name}, aligned by betaflow from `{params.model.base}`.\n",
            _loading(arm, address),
            "## Results\n",
            results(rows, params),
            f"## Rules, against {against}\n",
            rules_table(rules),
            "## Where it comes from\n",
            _origin(params, summary),
            "## Limits\n",
            limits(params, arm, rows),
            "## Settings\n",
            "```yaml",
            settings_text(params) + "```\n",
        ]
    )


def rules_table(rules: Sequence[Rule]) -> str:
    """The rules as a Markdown table."""
    lines = ["| rule | holds | why |", "|---|---|---|"]
    lines += [f"| {r.name} | {'yes' if r.held else '**no**'} | {r.reason} |" for r in rules]
    return "\n".join(lines) + "\n"


def results(rows: Sequence[Row], params: Params) -> str:
    """An arm's rows of the comparison as a Markdown table, with intervals."""
    names = [shown for shown in SHOWN if any(row.get(shown[0]) is not None for row in rows)]
    lines = [f"| T | {' | '.join(title for _, title, _, _ in names)} | prompts | samples |"]
    lines.append("|---" * (len(names) + 3) + "|")
    for row in rows:
        cells = [
            " ".join(filter(None, estimate(row, key, digits, scale).values()))
            for key, _, digits, scale in names
        ]
        counts = [str(row.get("prompts", "")), str(row.get("samples", ""))]
        lines.append(f"| {row['temperature']:g} | {' | '.join(cells + counts)} |")
    scores = _benchmark(rows)
    level = f"\n{params.compare.confidence:.0%} intervals over prompts. Judge: "
    return "\n".join(lines) + level + f"`{params.compare.judge}`.\n" + scores


def _benchmark(rows: Sequence[Row]) -> str:
    """The lm-eval scores of an arm, with standard errors, and less SFT's with intervals."""
    row = rows[0] if rows else {}
    names = [key.removesuffix("_vs_sft") for key in row if "/" in key and key.endswith("_vs_sft")]
    if not names:
        return ""
    lines = ["\n| lm-eval | score | standard error | less SFT's |", "|---|---|---|---|"]
    for name in sorted(names):
        shown = [significant(row.get(key)) for key in (name, f"{name}_stderr")]
        less = on_a_line(row, f"{name}_vs_sft", 4)
        lines.append(f"| {name} | {' | '.join(shown)} | {less} |")
    return "\n".join(lines) + "\n"


def _loading(arm: Arm, address: str) -> str:
    return f"""```python
import mlflow  # mlflow.set_tracking_uri(...) if it is another machine's registry
generator = mlflow.transformers.load_model("{address}")
```

```
mlflow artifacts download -u {address} -d {arm.name}
vllm serve {arm.name}/model
```
"""


def _origin(params: Params, summary: Mapping[str, Any]) -> str:
    git = git_tags()
    commit = git.get("mlflow.source.git.commit", "unknown")
    if git.get("git.dirty") == "true":
        commit += " (with changes that were not committed)"
    lock = dvc_lock()
    facts = {
        "code, git commit": commit,
        "dvc.lock, SHA-256": hashlib.sha256(lock).hexdigest() if lock else "unknown",
        **{f"{path}, DVC": md5 for path, md5 in dvc_hashes().items()},
        "arm's fingerprint (inputs, code, settings)": summary["fingerprint"],
        "data": params.data.source
        if params.data.path is None
        else f"{params.data.source} {params.data.path} {params.data.hub_revision or ''}".strip(),
        "base": f"{params.model.base} {params.model.revision or ''}".strip(),
    }
    return "\n".join(f"- {key}: `{value}`" for key, value in facts.items()) + "\n"


def limits(params: Params, arm: Arm, rows: Sequence[Row]) -> str:
    """What the numbers do not say, as a Markdown list. `rows` as in `model_card`."""
    lines = [
        "Intervals are over prompts; they do not cover training again with another seed.",
        f"Everything was measured on {max(row['prompts'] for row in rows)} held-out prompts like "
        "those of training, at the temperatures above. Elsewhere nothing is known.",
        "A win is the judge's; see its controls in the comparison's report.",
    ]
    if _stopped_early(params, arm):
        lines.append(
            "Early stopping (`patience`) chose weights by the loss on held-out pairs, whose "
            "prompts are those of the samples that were judged: the results may flatter it."
        )
    if params.compare.judge == "reward_model":
        lines.append("The judge is the reward model of this sweep, on which PPO was trained.")
    if params.data.source == "world":
        lines.append("It writes reviews of an embedded, artificial world. It is no use beyond it.")
    lines.append("Nothing was tested for safety, bias or facts.")
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _stopped_early(params: Params, arm: Arm) -> bool:
    """Whether held-out pairs chose the arm's weights, or those of the reward model behind it."""
    if arm.method == "ppo":
        return params.reward.patience is not None
    fresh = ("ppo_gt", "online_dpo")  # they learn from no given pairs
    return arm.method not in fresh and params.dpo.training.patience is not None
