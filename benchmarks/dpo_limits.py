"""What keeps DPO from the closed-form optimum: one factor changed at a time.

    .venv/bin/python -m benchmarks.dpo_limits [--out out/limits] [--seeds 0 1] [--cases base]

Run it in a workspace of the embedded world whose `out/sft`, `out/data` and `out/optimum` are made,
such as that of presets/frontier.yaml. Every case trains from the same reference on completions of
the same training prompts, differs from the first (`base`) in what its name says, and is told by
its share of the optimum's gain at its own KL, over the prompts of `out/optimum`.

It writes `limits.json` and `limits.png`. A case that `limits.json` has is not run again, so a run
that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import combinations
from random import Random
from typing import Any, Literal, NamedTuple

import torch

from benchmarks._limits import DRAWN_TOGETHER, Row, Workspace, command_line, label, run_cases
from betaflow.config import DPOTraining, OnlineSettings, Params
from betaflow.data.tokenise import Encoded
from betaflow.policy.loading import load_policy
from betaflow.policy.packing import all_sequences
from betaflow.policy.scorer import Scorer
from betaflow.sampling.engine import Completion, Request
from betaflow.sampling.hf_engine import HFEngine
from betaflow.training.dpo import ReferencedPairs, dpo_objective, train_dpo
from betaflow.training.online_dpo import train_online_dpo
from betaflow.training.prepare import prepare
from betaflow.worlds.sentiment import gold_reward

SCORED_TOKENS = 8192
ONLINE_PROMPTS = 64  # a step
NO_PAIRS = ReferencedPairs([], [], [], torch.zeros(0), torch.zeros(0))


class Case(NamedTuple):
    """How a policy is trained; the defaults are the case `base`.

    `share` of the prompts are used, in `passes` each; `pairs` of a prompt (0: all) are labelled
    by `annotators`, each on its own; `on_policy`: the second half of the prompts is completed by a
    policy that DPO made of the first half; a step takes `batch` prompts. `online`: so many steps on
    pairs that the policy draws anew, with `labels` and `value_steps` as `OnlineSettings` has them.
    """

    name: str
    beta: float = 0.4
    rate: float = 5e-4
    share: float = 1.0
    passes: float = 1.0
    pairs: int = 0
    annotators: int = 1
    on_policy: bool = False
    online: int = 0
    labels: Literal["drawn", "expected"] = "drawn"
    value_steps: int = 0
    frozen: str = ""
    batch: int = 32


CASES = (
    Case("base"),
    Case("3 pairs a prompt instead of 28", pairs=3),
    Case("a quarter of the prompts, 4 passes", share=0.25, passes=4.0),
    Case("8 labels a pair", annotators=8),
    Case("2 passes", passes=2.0),
    Case("rate 1e-4", rate=1e-4),
    Case("rate 1e-3", rate=1e-3),
    Case("half of the pairs on-policy", on_policy=True),
    Case("embeddings frozen", frozen="embed_tokens"),
    Case("beta 0.6", beta=0.6),
    Case("beta 0.3", beta=0.3),
    Case("beta 0.6, rate 2.5e-4", beta=0.6, rate=2.5e-4),
    Case("beta 0.3, rate 2.5e-4", beta=0.3, rate=2.5e-4),
    Case("beta 0.3, rate 1.2e-4", beta=0.3, rate=1.2e-4),
    Case("beta 0.15, rate 1.2e-4", beta=0.15, rate=1.2e-4),
    Case("beta 0.3, rate 1.2e-4, 2 passes", beta=0.3, rate=1.2e-4, passes=2.0),
    Case("beta 0.6, batch 16", beta=0.6, batch=16),
    Case("beta 0.6, batch 8", beta=0.6, batch=8),
    Case("beta 0.6, batch 8, rate 2.5e-4", beta=0.6, batch=8, rate=2.5e-4),
    Case("beta 0.6, batch 8, rate 1.2e-4", beta=0.6, batch=8, rate=1.2e-4),
    Case("online, beta 0.3", beta=0.3, online=200),
    Case("online, beta 0.17", beta=0.17, online=200),
    Case("online, expected labels, beta 0.3", beta=0.3, online=200, labels="expected"),
    Case("online, expected labels, beta 0.17", beta=0.17, online=200, labels="expected"),
    Case(
        "online, expected labels, 75 value steps first, beta 0.3",
        beta=0.3,
        online=275,
        labels="expected",
        value_steps=75,
    ),
)


class Pool(NamedTuple):
    """Completions of prompts: `(prompts, draws)` sequences, their gold rewards, log pi_ref."""

    sequences: list[list[Encoded]]
    rewards: torch.Tensor
    logps: torch.Tensor

    def part(self, first: int, last: int) -> Pool:
        """Those of some of the prompts."""
        return Pool(self.sequences[first:last], self.rewards[first:last], self.logps[first:last])

    def joined(self, other: Pool) -> Pool:
        """With another's prompts after its own."""
        return Pool(
            self.sequences + other.sequences,
            torch.cat([self.rewards, other.rewards]),
            torch.cat([self.logps, other.logps]),
        )


class Trial(Workspace):
    """A workspace, and what is done in it."""

    def __init__(self, params: Params, prompts: int, draws: int) -> None:
        super().__init__(params, prompts)
        self.draws = draws

    @cached_property
    def pool(self) -> Pool:
        """The reference's own completions."""
        return self.complete(self.reference, self.prompts, seed=0)

    def complete(self, policy: Any, prompts: Sequence[Row], seed: int) -> Pool:
        """Draw completions at T = 1, and give each its gold reward and log pi_ref."""
        budget = self.params.pairs.max_new_tokens
        drawn = HFEngine(policy, self.tokenizer, DRAWN_TOGETHER).generate(
            [
                Request(row["ids"], 1.0, (seed * 1009 + draw) * 1_000_003 + place, budget)
                for place, row in enumerate(prompts)
                for draw in range(self.draws)
            ]
        )
        owners = [row for row in prompts for _ in range(self.draws)]
        sequences = [
            Encoded(row["ids"], one.token_ids) for row, one in zip(owners, drawn, strict=True)
        ]
        rewards = [
            gold_reward(row["text"] + one.text) for row, one in zip(owners, drawn, strict=True)
        ]
        logps = all_sequences(
            Scorer(self.reference, self.pad), sequences, budget=SCORED_TOKENS, precision="float32"
        )
        return Pool(
            [sequences[i : i + self.draws] for i in range(0, len(sequences), self.draws)],
            torch.tensor(rewards).view(-1, self.draws),
            logps.view(-1, self.draws),
        )

    def train(self, case: Case, seed: int) -> Any:
        """The policy that DPO makes in this case."""
        if case.online:
            return self._online(case, seed)
        pool = self.pool.part(0, round(len(self.prompts) * case.share))
        if case.on_policy:
            half = len(self.prompts) // 2
            first = self._dpo(self.pool.part(0, half), case, f"{case.name}, first half", seed)
            own = self.complete(first.eval(), self.prompts[half:], seed=seed + 1)
            pool = self.pool.part(0, half).joined(own)
        return self._dpo(pool, case, case.name, seed)

    def _dpo(self, pool: Pool, case: Case, name: str, seed: int) -> Any:
        pairs, settings = labelled(pool, case, seed), self._settings(case)
        policy = load_policy("out/sft")
        for key, weight in policy.named_parameters():
            weight.requires_grad_(not (case.frozen and case.frozen in key))
        train_dpo(
            prepare(policy, settings, pad=self.pad),
            pairs,
            NO_PAIRS,
            settings,
            label=label("limits", name, seed),
            objective=dpo_objective(settings, case.beta),
            peak_rate=case.rate,
            seed=seed,
            precision="float32",
            fingerprint=repr((case, seed, len(pairs.ids), float(pool.logps.double().sum()))),
        )
        return policy

    def _settings(self, case: Case) -> DPOTraining:
        changes = {"batch_of": "prompts", "batch_size": case.batch, "epochs": case.passes}
        plain = {"loss": "sigmoid", "lora": None, "processes": 1, "eval_every": None}
        return self.params.dpo.training.model_copy(
            update={**changes, **plain, "patience": None, "schedule": "linear", "warmup_steps": 15}
        )

    def _online(self, case: Case, seed: int) -> Any:
        policy, settings = load_policy("out/sft"), self._settings(case)

        def reward(place: int, completion: Completion) -> float:
            return gold_reward(self.prompts[place]["text"] + completion.text)

        train_online_dpo(
            prepare(policy, settings, pad=self.pad),
            Scorer(self.reference, self.pad),
            HFEngine(policy, self.tokenizer, DRAWN_TOGETHER),
            reward,
            [row["ids"] for row in self.prompts],
            NO_PAIRS,
            settings,
            OnlineSettings(
                steps=case.online,
                prompts=ONLINE_PROMPTS,
                draws=self.draws,
                labels=case.labels,
                max_new_tokens=self.params.pairs.max_new_tokens,
                value_steps=case.value_steps,
                value_rate=1e-3,
            ),
            label=label("limits", case.name, seed),
            objective=dpo_objective(settings, case.beta),
            peak_rate=case.rate,
            seed=seed,
            precision="float32",
            fingerprint=repr((case, seed, len(self.prompts))),
        )
        return policy


def labelled(pool: Pool, case: Case, seed: int) -> ReferencedPairs:
    """Pairs within each prompt, labelled by Bradley-Terry under the gold reward."""
    rng = Random(f"{seed}")
    ids, chosen, rejected, places = [], [], [], []
    for prompt, (sequences, rewards) in enumerate(zip(pool.sequences, pool.rewards, strict=True)):
        found = list(combinations(range(len(sequences)), 2))
        for one, other in rng.sample(found, case.pairs or len(found)):
            if sequences[one].completion == sequences[other].completion:
                continue
            prefers_one = float(torch.sigmoid(rewards[one] - rewards[other]))
            for annotator in range(case.annotators):
                first, second = (one, other) if rng.random() < prefers_one else (other, one)
                ids.append(f"{prompt}-{one}-{other}-{annotator}")
                chosen.append(sequences[first])
                rejected.append(sequences[second])
                places.append((prompt, first, second))
    prompts, firsts, seconds = (list(column) for column in zip(*places, strict=True))
    logps = pool.logps
    return ReferencedPairs(ids, chosen, rejected, logps[prompts, firsts], logps[prompts, seconds])


def main() -> None:
    """Run the cases that are missing, and tell all."""
    parser = command_line(__doc__, "out/limits")
    parser.add_argument("--draws", type=int, default=8, help="completions of each")
    run_cases(parser, CASES, lambda params, given: Trial(params, given.prompts, given.draws))


if __name__ == "__main__":
    main()
