"""`params.yaml` -> typed, validated settings.

Each section belongs to the stage of the same name and is declared as that stage's
parameters in `dvc.yaml`. An unknown key, a wrong type or an empty grid is reported as one
message that names the key (`UserError`), before anything runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from betaflow.errors import UserError
from betaflow.io import parse_yaml
from betaflow.objectives.options import PUBLISHED, WITHOUT_OPTIONS, LossName, check_options

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(gt=0)]
# A grid value keeps the type YAML gave it, so that `1` and `1.0` name their arm as DVC does.
GridNumber = Annotated[int, Field(gt=0)] | Positive
GridNumberOrZero = Annotated[int, Field(ge=0)] | NonNegative
GridShare = Annotated[int, Field(gt=0, le=1)] | Annotated[float, Field(gt=0, le=1)]

DPOMethod = Literal["dpo", "slic", "online_dpo"]  # arms of stage `dpo`
PairMethod = Literal[DPOMethod, "ipo"]  # whose losses are those of `DPOTraining.of`
PPOMethod = Literal["ppo", "ppo_gt"]  # arms of stage `ppo`
Scorer = Literal["reward_model", "gold"]
ModelMethod = Literal["sft", PairMethod, "preferred_ft", "unlikelihood", PPOMethod]
UnlabelledMethod = Literal["dpo", "dpo_reward_model", "dpo_implicit", "ppo"]
Method = Literal[ModelMethod, "best_of_n"]
STAGES: dict[str, str] = {  # the stage that trains a method, where its name is not the method's
    "slic": "dpo",
    "online_dpo": "dpo",
    "preferred_ft": "unlikelihood",
    "ppo_gt": "ppo",
}

Truncation = Literal["drop", "keep_start", "keep_end"]
# Questions to a judge that come with betaflow: the files of betaflow/evaluation/judge_prompts.
TEMPLATES = ("summarisation_simple", "summarisation_concise", "dialogue", "sentiment")


class Section(BaseModel):
    """Base of every section: no unknown key, no silent conversion, no mutation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RunSettings(Section):
    """How the flow runs; no stage's result depends on it."""

    experiment: str = Field(min_length=1)
    jobs: Count
    gpus: Annotated[int, Field(ge=0)]
    registered_model: str = Field(min_length=1)

    @field_validator("registered_model")
    @classmethod
    def _of_mlflow(cls, name: str) -> str:
        if {"/", ":"} & set(name):
            raise ValueError("a model's name in MLflow has neither / nor :")
        return name


class WorldSettings(Section):
    """Sizes of the embedded controlled-sentiment world."""

    reviews: Count
    prompts: Count
    unlabelled: Annotated[int, Field(ge=0)]
    out_of_domain: Annotated[int, Field(ge=0)]


class DataSettings(Section):
    """Where text, prompts and human pairs come from."""

    source: Literal["world", "hh", "jsonl", "parquet", "hub"]
    path: str | None
    hub_split: str | None
    hub_revision: str | None = None
    text: str | None
    eval_fraction: Fraction
    max_rows: Count | None
    seed: int
    world: WorldSettings | None

    @model_validator(mode="after")
    def _complete(self) -> DataSettings:
        if self.source == "world" and self.world is None:
            raise ValueError("source 'world' needs the section data.world")
        if self.source != "world" and self.path is None:
            raise ValueError(
                f"source {self.source!r} needs `path` (a file, or a hub dataset's name)"
            )
        return self

    @model_validator(mode="after")
    def _reads_what_is_set(self) -> DataSettings:
        unread = ["path", "text", "max_rows"] if self.source == "world" else []
        unread += [] if self.source == "hub" else ["hub_split", "hub_revision"]
        if found := [f"`{key}`" for key in unread if getattr(self, key) is not None]:
            raise ValueError(f"source {self.source!r} does not read {', '.join(found)}: set null")
        return self


class ScratchSettings(Section):
    """A small Llama-type model made on the spot."""

    vocabulary: Annotated[int, Field(ge=260)]
    hidden: Count
    layers: Count
    heads: Count
    max_positions: Count

    @model_validator(mode="after")
    def _divisible(self) -> ScratchSettings:
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError("`hidden` must be `heads` times an even number")
        return self


class ModelSettings(Section):
    """The base model: a folder or hub name, or `scratch`."""

    base: str
    revision: str | None
    scratch: ScratchSettings | None
    precision: Literal["float32", "bfloat16"]
    trust_remote_code: bool

    @model_validator(mode="after")
    def _complete(self) -> ModelSettings:
        if self.base == "scratch" and self.scratch is None:
            raise ValueError("base 'scratch' needs the section model.scratch")
        return self


class OptimisationSettings(Section):
    """What every gradient-trained stage shares."""

    optimizer: Literal["adamw", "rmsprop"]
    warmup_steps: Annotated[int, Field(ge=0)]
    schedule: Literal["constant", "linear", "cosine"]
    weight_decay: NonNegative
    max_grad_norm: Positive
    batch_size: Count
    checkpoint_seconds: Positive
    threads: Count


class PairTraining(OptimisationSettings):
    """Training on pairs that may stop early, by the loss on the held-out ones.

    `batch_of`: what `batch_size` counts; see `betaflow.training.trees`.
    """

    batch_of: Literal["pairs", "prompts"]
    eval_every: Count | None
    patience: Count | None

    @model_validator(mode="after")
    def _evaluated(self) -> PairTraining:
        if self.patience is not None and self.eval_every is None:
            raise ValueError("`patience` counts evaluations: set `eval_every` too")
        return self


class SFTSettings(OptimisationSettings):
    """Supervised fine-tuning on packed text."""

    micro_batch_size: Count

    learning_rate: Positive
    epochs: Positive
    block_tokens: Annotated[int, Field(ge=16)]
    seed: int


class PairsSettings(Section):
    """Preference pairs: sampled from the reference, or human ones."""

    source: Literal["sampled", "human"]
    samples_per_prompt: Annotated[int, Field(ge=2)]
    pairs_per_prompt: Count
    max_new_tokens: Count
    max_prompt_tokens: Count
    max_completion_tokens: Count
    truncation: Truncation
    temperature: Positive
    engine: Literal["vllm", "hf"]
    logprob_tolerance: Positive
    seed: int
    threads: Count

    @model_validator(mode="after")
    def _enough_samples(self) -> PairsSettings:
        possible = self.samples_per_prompt * (self.samples_per_prompt - 1) // 2
        if self.pairs_per_prompt > possible:
            raise ValueError(f"{self.samples_per_prompt} samples make {possible} pairs at most")
        return self

    @model_validator(mode="after")
    def _only_human_pairs_are_cut(self) -> PairsSettings:
        if self.source == "sampled" and self.truncation != "drop":
            raise ValueError("`truncation` is of human pairs; sampled ones are never cut: set drop")
        return self


class ReferenceSettings(Section):
    """The reference's log-probabilities, computed once."""

    micro_batch_tokens: Count
    threads: Count


class Grid(Section):
    """Every combination is one arm."""

    @model_validator(mode="after")
    def _unique(self) -> Grid:
        _require_unique(dict(self))
        return self


class DPOGrid(Grid):
    """The arms of stage `dpo`; each method's loss is that of `DPOTraining.of`."""

    method: Annotated[list[DPOMethod], Field(min_length=1)]
    beta: Annotated[list[GridNumber], Field(min_length=1)]
    learning_rate: Annotated[list[GridNumber], Field(min_length=1)]
    seed: Annotated[list[int], Field(min_length=1)]


class IPOGrid(Grid):
    """The arms of stage `ipo`: none where a list is empty. IPO's beta binds tighter than DPO's."""

    beta: list[GridNumber]
    learning_rate: list[GridNumber]
    seed: list[int]


class UnlikelihoodGrid(Grid):
    """The arms of stage `unlikelihood`: none where a list is empty."""

    alpha: list[GridNumberOrZero]
    learning_rate: list[GridNumber]
    seed: list[int]


class PPOGrid(Grid):
    """The arms of stage `ppo`."""

    method: Annotated[list[PPOMethod], Field(min_length=1)]
    beta: Annotated[list[GridNumber], Field(min_length=1)]
    target_kl: Annotated[list[GridNumberOrZero], Field(min_length=1)]
    learning_rate: Annotated[list[GridNumber], Field(min_length=1)]
    seed: Annotated[list[int], Field(min_length=1)]


class BestOfNGrid(Grid):
    """The Best-of-N arms: none where a list is empty."""

    scorer: list[Scorer]
    n: list[Count]


class LoRASettings(Section):
    """Low-rank adapters (Hu et al. 2021): W + (alpha / rank) B A."""

    rank: Count
    alpha: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]
    targets: Annotated[list[str], Field(min_length=1)] | None


class DPOTraining(PairTraining):
    """Direct Preference Optimization (Rafailov et al. 2023), and the losses near it."""

    loss: LossName
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    length_normalised: bool
    margin: NonNegative
    sft_weight: NonNegative
    epochs: Positive
    micro_batch_tokens: Count
    sample_every: Count | None
    keep_checkpoints: Annotated[int, Field(ge=2)]
    gradient_checkpointing: bool
    compile: bool
    lora: LoRASettings | None
    processes: Count

    @model_validator(mode="after")
    def _consistent(self) -> DPOTraining:
        check_options(
            self.loss,
            beta=1.0,
            label_smoothing=self.label_smoothing,
            length_normalised=self.length_normalised,
            margin=self.margin,
        )
        return self

    def of(self, method: PairMethod) -> DPOTraining:
        """These settings with the method's loss: for IPO and SLiC as published, without options."""
        if method in ("dpo", "online_dpo"):
            return self
        return self.model_copy(update={"loss": PUBLISHED[method], **WITHOUT_OPTIONS})


class OnlineSettings(Section):
    """What online DPO draws; all else is as `DPOTraining` says, but for its passes and batches."""

    steps: Count
    prompts: Count
    draws: Annotated[int, Field(ge=2)]
    labels: Literal["drawn", "expected"]
    max_new_tokens: Count
    value_steps: Annotated[int, Field(ge=0)]
    value_rate: Positive

    @model_validator(mode="after")
    def _value_steps_leave_some(self) -> OnlineSettings:
        if self.value_steps >= self.steps:
            raise ValueError("value_steps must be fewer than steps")
        return self


class DPOSettings(Section):
    """The arms of DPO, online DPO and SLiC."""

    grid: DPOGrid
    training: DPOTraining
    online: OnlineSettings

    @model_validator(mode="after")
    def _online_in_one_process(self) -> DPOSettings:
        if "online_dpo" in self.grid.method and self.training.processes > 1:
            raise ValueError("online_dpo draws its pairs in one process: set training.processes: 1")
        return self


class IPOSettings(Section):
    """IPO arms, trained as `dpo.training` says."""

    grid: IPOGrid


class UnlikelihoodSettings(Section):
    """Preferred-FT and Unlikelihood arms, trained as `dpo.training` says."""

    grid: UnlikelihoodGrid


class RewardSettings(PairTraining):
    """The Bradley-Terry reward model."""

    learning_rate: Positive
    epochs: Positive
    micro_batch_size: Count
    seed: int


class PPOTraining(OptimisationSettings):
    """RLHF-PPO; `batch_size` is the episodes of one rollout."""

    iterations: Count
    epochs: Count
    micro_batch_size: Count
    max_new_tokens: Count
    clip: Positive
    value_clip: Positive
    value_coefficient: NonNegative
    gamma: Annotated[float, Field(gt=0, le=1)]
    lam: Annotated[float, Field(ge=0, le=1)]
    missing_eos_penalty: NonNegative
    critic_warmup: Annotated[int, Field(ge=0)]
    teach_states: bool
    engine: Literal["vllm", "hf"]
    logprob_tolerance: Positive
    minibatches: Count
    reuse_scoring: bool
    kl_horizon: Count
    whiten_rewards: bool

    @model_validator(mode="after")
    def _minibatches_fit(self) -> PPOTraining:
        if self.minibatches > self.batch_size:
            raise ValueError(f"`minibatches` is more than the {self.batch_size} of `batch_size`")
        if self.kl_horizon < self.batch_size:
            raise ValueError(
                f"`kl_horizon` is less than the {self.batch_size} episodes of `batch_size`: the "
                "coefficient would leap, and could end below 0"
            )
        if self.reuse_scoring and self.minibatches > 1:
            raise ValueError("`reuse_scoring` needs `minibatches: 1`; set it to false")
        return self

    @model_validator(mode="after")
    def _warm_up_ends(self) -> PPOTraining:
        if self.critic_warmup >= self.iterations:
            raise ValueError(
                f"`critic_warmup` must be below the {self.iterations} `iterations`: before its end "
                "the policy takes no rewarded step"
            )
        if self.teach_states and not self.critic_warmup:
            raise ValueError(
                "`teach_states` is in the critic's warm-up: `critic_warmup` must be above 0"
            )
        return self


class PPOSettings(Section):
    """The PPO arms."""

    grid: PPOGrid
    training: PPOTraining


class UnlabelledGrid(Grid):
    """The policies of the experiment on unlabelled prompts: none where both lists are empty."""

    labelled: list[GridShare]
    seed: list[int]

    @model_validator(mode="after")
    def _both_or_none(self) -> UnlabelledGrid:
        # Fresh pairs are drawn once a seed, whatever the shares: they would be drawn for nothing.
        if bool(self.labelled) != bool(self.seed):
            raise ValueError("`labelled` and `seed` are both empty, or neither")
        return self


class UnlabelledSettings(Section):
    """DPO with and without unlabelled prompts; trained as `dpo`, `reward` and `ppo` say."""

    grid: UnlabelledGrid
    beta: Positive
    learning_rate: Positive
    ppo_beta: Positive
    ppo_target_kl: NonNegative
    ppo_learning_rate: Positive


class CurveSettings(Section):
    """Gold reward and KL of held-out prompts while an arm trains."""

    points: Annotated[int, Field(ge=0)]
    prompts: Count
    draws: Count


class OptimumSettings(Section):
    """Many draws of the reference, for the closed-form optimum and Best-of-N."""

    samples: Annotated[int, Field(ge=0)]
    minimum_ess: Positive


class BestOfNSettings(Section):
    """The Best-of-N arms: the best of n draws of the reference, by a scorer."""

    grid: BestOfNGrid


class SampleSettings(Section):
    """Sampling every arm: prompts x temperatures x seeds."""

    engine: Literal["vllm", "hf"]
    temperatures: Annotated[list[NonNegative], Field(min_length=1)]
    seeds: Annotated[list[int], Field(min_length=1)]
    prompts: Count
    out_of_domain: Annotated[int, Field(ge=0)]
    max_new_tokens: Count
    logprob_tolerance: Positive
    threads: Count

    @model_validator(mode="after")
    def _has_one_and_nothing_twice(self) -> SampleSettings:
        if 1.0 not in self.temperatures:
            raise ValueError("`temperatures` must hold 1.0: KL is estimated on samples at T = 1")
        _require_unique({"temperatures": self.temperatures, "seeds": self.seeds})
        return self


class BenchmarkSettings(Section):
    """lm-eval tasks, by name: this repository's own or the harness's."""

    engine: Literal["vllm", "hf"]
    tasks: list[str]
    limit: Count | None
    logprob_tolerance: Positive
    batch_size: Count
    threads: Count


def _require_unique(lists: Mapping[str, Sequence[Any]]) -> None:
    for name, values in lists.items():
        if len(set(values)) != len(values):
            raise ValueError(f"`{name}` lists a value twice")


def _has_host(url: str) -> bool:
    """Whether an address has a host, and a port that can be if it has one."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0  # reading `port` checks it
    except ValueError:
        return False


class LLMSettings(Section):
    """A language model that judges: an OpenAI-compatible endpoint, and what it is asked."""

    base_url: str
    model: str = Field(min_length=1)
    key_variable: str | None
    template: str
    temperature: NonNegative | None
    max_tokens: Count | None
    options: dict[str, Any]
    concurrency: Count
    timeout: Positive
    retries: Annotated[int, Field(ge=0)]
    deadline: Positive | None
    prompt_price: NonNegative | None
    completion_price: NonNegative | None

    # None of these messages shows what was given: a key may have been put in the wrong place.
    @model_validator(mode="after")
    def _no_secrets(self) -> LLMSettings:
        if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", self.base_url) or not _has_host(
            self.base_url
        ):
            raise ValueError(
                "`base_url` must be like http://127.0.0.1:8000/v1, without user, key or query"
            )
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*|", self.key_variable or ""):
            raise ValueError(
                "`key_variable` is the name, in capitals, of the environment variable that holds "
                "the key, never the key itself"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> LLMSettings:
        ours = {"model", "messages", "temperature", "max_tokens", "stream", "n"}
        if taken := sorted(ours & set(self.options)):
            raise ValueError(f"`options` can't hold {taken[0]!r}: it is set here, or fixed")
        try:
            json.dumps(self.options, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError(
                "`options` are sent as JSON: texts, finite numbers, true, false, null, lists and "
                "mappings of these (YAML takes 2024-01-01 for a date: put it in quotes)"
            ) from None
        if "/" not in self.template and self.template not in TEMPLATES:
            raise ValueError(f"`template` is a file in data/, or one of {', '.join(TEMPLATES)}")
        if (self.prompt_price is None) != (self.completion_price is None):
            raise ValueError("`prompt_price` and `completion_price` are both null, or neither")
        return self


class ControlSettings(Section):
    """Where a judge fails a control; see docs/judges.md."""

    null_limit: Fraction = 0.5
    longest_limit: Fraction = 0.75
    missing_limit: Fraction = 0.1


class CompareSettings(Section):
    """The comparison table and report."""

    judge: Literal["gold", "reward_model", "llm"]
    llm: LLMSettings | None = None
    controls: ControlSettings = ControlSettings()
    bootstrap: Annotated[int, Field(ge=100)]
    confidence: Fraction
    seed: int
    report_samples: Count

    @model_validator(mode="after")
    def _complete(self) -> CompareSettings:
        if self.judge == "llm" and self.llm is None:
            raise ValueError("judge 'llm' needs the section compare.llm; see docs/judges.md")
        return self

    @property
    def resampling(self) -> dict[str, Any]:
        """How intervals are resampled, as the arguments of `bootstrap.mean_interval`."""
        return {"resamples": self.bootstrap, "confidence": self.confidence, "seed": self.seed}


class DetectSettings(Section):
    """The win rate that a promotion's prompts must be enough to show, and with what chance."""

    win_rate: Annotated[float, Field(gt=0.5, le=1)]
    power: Fraction


class PromotionSettings(Section):
    """Which arm is the challenger, and the rules by which it becomes champion.

    `margins`: by lm-eval task, or `default`; None: the task (or every task) has no such rule.
    """

    metric: str
    temperature: NonNegative
    methods: Annotated[list[ModelMethod], Field(min_length=1)]
    margins: dict[str, Positive | None] | None
    kl_budget: Positive | None
    detect: DetectSettings | None
    seeds: Count

    @model_validator(mode="after")
    def _every_task_has_a_margin(self) -> PromotionSettings:
        if self.margins is not None and "default" not in self.margins:
            raise ValueError("`margins` needs `default`, for the tasks that it does not name")
        return self


class Params(BaseModel):
    """The whole of `params.yaml`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    run: RunSettings
    data: DataSettings
    model: ModelSettings
    sft: SFTSettings
    pairs: PairsSettings
    reference: ReferenceSettings
    dpo: DPOSettings
    ipo: IPOSettings
    unlikelihood: UnlikelihoodSettings
    reward: RewardSettings
    ppo: PPOSettings
    unlabelled: UnlabelledSettings
    curve: CurveSettings
    optimum: OptimumSettings
    best_of_n: BestOfNSettings
    sample: SampleSettings
    benchmark: BenchmarkSettings
    compare: CompareSettings
    promotion: PromotionSettings

    @model_validator(mode="after")
    def _vllm_can_run_it(self) -> Params:
        scratch = self.model.scratch if self.model.base == "scratch" else None
        stages = (self.pairs, self.ppo.training, self.sample, self.benchmark)
        engines = [stage.engine for stage in stages]
        if scratch and "vllm" in engines and (scratch.hidden // scratch.heads) % 32:
            raise ValueError(
                "vLLM's attention on a CPU wants heads of a multiple of 32: change "
                "model.scratch.hidden or heads, or set `engine: hf`"
            )
        return self

    @model_validator(mode="after")
    def _inputs_are_tracked(self) -> Params:
        """Files must lie in `data/`, which is part of the graph: elsewhere a change is not seen."""
        files = {"data.text": self.data.text}
        if self.data.source in ("hh", "jsonl", "parquet"):
            files["data.path"] = self.data.path
        if Path(self.model.base).is_dir() or self.model.base.startswith((".", "/")):
            files["model.base"] = self.model.base
        if self.compare.llm is not None and self.compare.llm.template not in TEMPLATES:
            files["compare.llm.template"] = self.compare.llm.template
        for key, path in files.items():
            if path is not None and (".." in Path(path).parts or Path(path).parts[:1] != ("data",)):
                raise ValueError(
                    f"{key} {path!r} is not in data/, where a change of it would be seen; "
                    f"`dvc import-url {path} data/` (or `dvc add` a copy there)"
                )
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> Params:
        if self.promotion.temperature not in self.sample.temperatures:
            raise ValueError("promotion.temperature must be one of sample.temperatures")
        if self.curve.points and self.dpo.training.processes > 1:
            raise ValueError(
                "curve.points looks at a policy in one process; set it to 0, or "
                "dpo.training.processes to 1"
            )
        if not {arm.method for arm in arms(self)} & set(self.promotion.methods):
            raise ValueError("promotion.methods: no grid has an arm of them")
        if self.data.source != "world" and "betaflow_cloze" in self.benchmark.tasks:
            raise ValueError("benchmark.tasks: betaflow_cloze is of the embedded world alone")
        if self.model.base == "scratch" and self.model.scratch is not None:
            longest = self.model.scratch.max_positions
            sampled = self.pairs.source == "sampled"
            most = "max_new_tokens" if sampled else "max_completion_tokens"
            needed = {
                "sft.block_tokens": self.sft.block_tokens,
                f"pairs.max_prompt_tokens + pairs.{most}": (
                    self.pairs.max_prompt_tokens + getattr(self.pairs, most)
                ),
                "pairs.max_prompt_tokens + sample.max_new_tokens": (
                    self.pairs.max_prompt_tokens + self.sample.max_new_tokens
                ),
                "pairs.max_prompt_tokens + ppo.training.max_new_tokens": (
                    self.pairs.max_prompt_tokens + self.ppo.training.max_new_tokens
                ),
            }
            if "online_dpo" in self.dpo.grid.method:
                needed["pairs.max_prompt_tokens + dpo.online.max_new_tokens"] = (
                    self.pairs.max_prompt_tokens + self.dpo.online.max_new_tokens
                )
            for what, tokens in needed.items():
                if tokens > longest:
                    raise ValueError(f"{what} = {tokens} is more than model.scratch.max_positions")
        return self

    @model_validator(mode="after")
    def _judge_exists(self) -> Params:
        if self.compare.judge == "gold" and self.data.source != "world":
            raise ValueError(
                "compare.judge 'gold' is known only in the embedded world; use 'reward_model'"
            )
        if self.pairs.source == "sampled" and self.data.source != "world":
            raise ValueError("pairs.source 'sampled' is labelled by the gold reward; use 'human'")
        if self.pairs.source == "human" and self.data.source == "world":
            raise ValueError("the embedded world has no human pairs; use pairs.source 'sampled'")
        return self

    @model_validator(mode="after")
    def _gold_reward_exists(self) -> Params:
        if self.data.source == "world":
            return self
        if "online_dpo" in self.dpo.grid.method:
            raise ValueError(
                "dpo.grid.method: online_dpo is of the embedded world alone (gold reward)"
            )
        if "ppo_gt" in self.ppo.grid.method:
            raise ValueError("ppo.grid.method: ppo_gt is of the embedded world alone (gold reward)")
        if "gold" in self.best_of_n.grid.scorer:
            raise ValueError("best_of_n.grid.scorer: gold is of the embedded world alone")
        return self

    @model_validator(mode="after")
    def _draws_suffice(self) -> Params:
        draws, most = self.optimum.samples, max(self.best_of_n.grid.n, default=0)
        if 0 < draws < self.optimum.minimum_ess:
            raise ValueError(
                f"optimum.samples: {draws} draws can't have an effective sample size of "
                "optimum.minimum_ess; draw more, or 0 for no optimum"
            )
        if most * len(self.sample.seeds) > draws:
            raise ValueError(
                f"best_of_n.grid.n: the best of {most} is chosen among fresh draws for each of "
                f"the {len(self.sample.seeds)} sample.seeds, of optimum.samples, which is {draws}"
            )
        return self


class Arm(BaseModel):
    """One policy that is compared: a method and its point in the grid; None: not of the method."""

    model_config = ConfigDict(frozen=True)

    method: Method
    beta: GridNumber | None = None  # strength of the KL constraint
    alpha: GridNumberOrZero | None = None  # weight of the unlikelihood term
    target_kl: GridNumberOrZero | None = None  # nats a completion; 0: beta is fixed
    n: Count | None = None  # draws that the best is chosen among
    scorer: Scorer | None = None  # what chooses it
    learning_rate: GridNumber | None = None
    seed: int | None = None

    @property
    def stage(self) -> str:
        """The stage of `dvc.yaml` that makes the arm."""
        return STAGES.get(self.method, self.method)

    @property
    def name(self) -> str:
        """The arm's name, as `dvc.yaml` writes it in paths: `dpo-b0.1-lr0.001-s0`."""
        trained = f"lr{self.learning_rate}-s{self.seed}"
        match self.stage:
            case "dpo" | "ipo":
                return f"{self.method}-b{self.beta}-{trained}"
            case "unlikelihood":
                return f"unlikelihood-a{self.alpha}-{trained}"
            case "ppo":
                return f"{self.method}-b{self.beta}-kl{self.target_kl}-{trained}"
            case "best_of_n":
                return f"best_of_n-{self.scorer}-n{self.n}"
        return self.method

    @property
    def has_implicit_reward(self) -> bool:
        """Whether its loss makes beta log(pi / pi_ref) a reward (the DPO paper, section 5.2)."""
        return self.stage in ("dpo", "ipo")

    @property
    def has_model(self) -> bool:
        """Whether it is a model, and not a choice among the reference's draws."""
        return self.method != "best_of_n"

    @property
    def model_dir(self) -> Path:
        """Where the arm's model lies, relative to the workspace. Raises ValueError without one."""
        if not self.has_model:
            raise ValueError(f"{self.name} has no model")
        return Path("out/sft") if self.method == "sft" else Path("out", self.stage, self.name)


def unlikelihood_arm(alpha: int | float, learning_rate: int | float, seed: int) -> Arm:
    """The arm of stage `unlikelihood` at a point of its grid: at alpha 0 it is Preferred-FT."""
    method: Method = "unlikelihood" if alpha else "preferred_ft"
    return Arm(method=method, alpha=alpha, learning_rate=learning_rate, seed=seed)


def arms(params: Params) -> list[Arm]:
    """Every arm of the sweep: SFT, then stage by stage, each in the order of its grid."""
    found = [Arm(method="sft")]
    found += [Arm(**point) for point in _points(params.dpo.grid)]
    found += [Arm(method="ipo", **point) for point in _points(params.ipo.grid)]
    found += [unlikelihood_arm(**point) for point in _points(params.unlikelihood.grid)]
    found += [Arm(**point) for point in _points(params.ppo.grid)]
    found += [Arm(method="best_of_n", **point) for point in _points(params.best_of_n.grid)]
    return found


def _points(grid: Grid) -> list[dict[str, Any]]:
    """Every combination of a grid's lists, the last list's values varying fastest."""
    names = list(type(grid).model_fields)
    return [dict(zip(names, values, strict=True)) for values in product(*(v for _, v in grid))]


class UnlabelledArm(BaseModel):
    """One policy of the experiment on unlabelled prompts, or the reward model of a share.

    It is no arm of the sweep: it is neither in the comparison nor promoted.
    """

    model_config = ConfigDict(frozen=True)

    method: Literal[UnlabelledMethod, "reward"]
    labelled: GridShare  # share of the labelled prompts whose pairs are kept
    seed: int
    beta: float | None = None  # strength of the KL constraint; None: of a reward model
    target_kl: float | None = None  # nats a completion; 0: beta is fixed
    learning_rate: float

    @property
    def stage(self) -> str:
        """The stage of `dvc.yaml` that makes it."""
        return f"unlabelled-{self.method}"

    @property
    def name(self) -> str:
        """Its name, as `dvc.yaml` writes it in paths: `unlabelled-dpo-f0.05-s0`."""
        return f"{self.stage}-f{self.labelled}-s{self.seed}"

    @property
    def model_dir(self) -> Path:
        """Where its model lies, relative to the workspace."""
        return Path("out/unlabelled", self.name)


def unlabelled_arm(
    params: Params, method: UnlabelledMethod | Literal["reward"], labelled: int | float, seed: int
) -> UnlabelledArm:
    """The policy (or the reward model) of a method at a point of `unlabelled.grid`."""
    settings = params.unlabelled
    how: dict[str, float] = {"beta": settings.beta, "learning_rate": settings.learning_rate}
    if method == "reward":
        how = {"learning_rate": params.reward.learning_rate}
    elif method == "ppo":
        how = {
            "beta": settings.ppo_beta,
            "target_kl": settings.ppo_target_kl,
            "learning_rate": settings.ppo_learning_rate,
        }
    return UnlabelledArm(method=method, labelled=labelled, seed=seed, **how)


def unlabelled_arms(params: Params) -> list[UnlabelledArm]:
    """Every policy of the experiment: by share, then by seed, then by method."""
    grid = params.unlabelled.grid
    return [
        unlabelled_arm(params, method, share, seed)
        for share, seed, method in product(grid.labelled, grid.seed, get_args(UnlabelledMethod))
    ]


def fresh_pairs_dir(seed: int) -> Path:
    """Where the fresh pairs of a seed lie, which that experiment's policies share."""
    return Path("out/unlabelled", f"unlabelled-fresh-s{seed}")


def parse_params(values: Any, source: str = "params.yaml") -> Params:
    """Validate parsed YAML. Raises `UserError` naming every wrong key."""
    if not isinstance(values, dict):
        raise UserError(
            f"{source} is {'empty' if values is None else 'no mapping of keys to values'}: take it "
            "from the repository again, or one of presets/"
        )
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise UserError(f"{source} is not valid:\n" + "\n".join(lines)) from None


def _explain(detail: Any) -> str:
    # A union's members show up in the location as type names: leave those out.
    key = ".".join(
        str(part)
        for part in detail["loc"]
        if not (isinstance(part, str) and part.startswith(("constrained", "int", "float")))
    )
    message = detail["msg"].removeprefix("Value error, ")
    given = detail.get("input")
    if detail["type"] == "extra_forbidden":
        message = "unknown key; see params.yaml for the ones there are"
    elif detail["type"] == "missing":
        message = "this key is missing"
    elif detail["type"] == "too_short":
        message = "must list at least one value"
    elif isinstance(given, str | int | float | bool | None):
        message += f" (got {given!r})"
        if isinstance(given, str) and detail["type"] in ("float_type", "int_type"):
            message += "; YAML reads 1e-6 as text: write 1.0e-6"
    return f"  {key or '(whole file)'}: {message}"


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and validate a params file. Raises `UserError` with what to do."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; run from the repository's root, or copy one from presets/"
        ) from None
    try:
        values = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    return parse_params(values, str(path))
