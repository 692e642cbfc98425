"""params.yaml: every mistake is one message that names the key."""

from __future__ import annotations

import copy
import re
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from endpoints import settings

from betaflow.config import (
    Params,
    arms,
    fresh_pairs_dir,
    load_params,
    parse_params,
    unlabelled_arms,
)
from betaflow.errors import UserError
from betaflow.evaluation.power import prompts_needed
from betaflow.evaluation.promotion import candidates, simultaneous


def put(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        values = values[part]
    values[last] = value


@pytest.fixture
def values(repository: Path) -> dict[str, Any]:
    return copy.deepcopy(yaml.safe_load((repository / "params.yaml").read_text()))


def test_the_default_has_four_trials_of_dpo_as_many_of_ppo_and_sft(params: Params) -> None:
    methods = [arm.method for arm in arms(params)]
    assert methods[0] == "sft"
    assert len(params.dpo.grid.beta) >= 4
    assert methods.count("ppo") == methods.count("dpo")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dpo.training.epoch", 1, "dpo.training.epoch: unknown key"),
        ("dpo.grid.beta", [], "dpo.grid.beta: must list at least one value"),
        ("dpo.grid.beta", [0.1, 0.1], "dpo.grid: `beta` lists a value twice"),
        ("dpo.grid.beta", ["small"], "dpo.grid.beta.0:"),
        ("dpo.grid.beta", [-1.0], "dpo.grid.beta.0:"),
        ("sft.learning_rate", "1e-3", "sft.learning_rate: Input should be a valid number"),
        ("sft.batch_size", 1.5, "sft.batch_size:"),
        ("data.eval_fraction", 1.0, "data.eval_fraction:"),
        ("sample.seeds", [0, 0], "sample: `seeds` lists a value twice"),
        ("dpo.grid.beta", [float("inf")], "dpo.grid.beta.0:"),
        ("ppo.grid.target_kl", [float("inf")], "ppo.grid.target_kl.0:"),
        ("promotion.methods", ["ipo"], "promotion.methods: no grid has an arm of them"),
        ("sample.temperatures", [0.5], "sample: `temperatures` must hold 1.0"),
        ("sample.engine", "vlm", "sample.engine:"),
        ("data.source", "hh", "data: source 'hh' needs `path`"),
        ("compare.judge", "reward", "compare.judge:"),
        ("compare.judge", "llm", "compare: judge 'llm' needs the section compare.llm"),
        ("compare.llm", {"model": "m"}, "compare.llm.base_url: this key is missing"),
        ("compare.controls.null_limit", 1.5, "compare.controls.null_limit:"),
        ("promotion.temperature", 0.7, "promotion.temperature must be one of"),
        ("promotion.methods", ["dqo"], "promotion.methods.0"),
        ("sft.block_tokens", 512, "sft.block_tokens = 512 is more than"),
        ("pairs.max_new_tokens", 250, "pairs.max_new_tokens = 314 is more"),
        ("data.path", "data/x.jsonl", "data: source 'world' does not read `path`: set null"),
        ("data.text", "data/x.txt", "data: source 'world' does not read `text`: set null"),
        ("data.max_rows", 5, "data: source 'world' does not read `max_rows`: set null"),
        ("data.hub_revision", "main", "data: source 'world' does not read `hub_revision`"),
        ("model.base", "./gpt2", "model.base './gpt2' is not in data/"),
        ("pairs.source", "human", "the embedded world has no human pairs"),
        ("pairs.truncation", "keep_middle", "pairs.truncation: Input should be 'drop', 'keep_"),
        ("pairs.truncation", "keep_end", "pairs: `truncation` is of human pairs"),
        ("pairs.pairs_per_prompt", 16, "pairs: 6 samples make 15 pairs at most"),
        ("model.scratch.heads", 3, "model.scratch: `hidden` must be"),
        ("model.scratch.hidden", 64, "vLLM's attention on a CPU"),
        ("dpo.grid.method", ["ppo"], "dpo.grid.method.0:"),
        ("ppo.grid.target_kl", [-1], "ppo.grid.target_kl.0:"),
        ("ppo.grid.method", [], "ppo.grid.method: must list at least one value"),
        ("ppo.training.critic_warmup", 40, "`critic_warmup` must be below the 40 `iterations`"),
        ("ppo.training.minibatches", 2, "`reuse_scoring` needs `minibatches: 1`"),
        (
            "ppo.training.kl_horizon",
            95,
            "`kl_horizon` is less than the 96 episodes of `batch_size`",
        ),
        ("ppo.training.minibatches", 97, "`minibatches` is more than the 96 of `batch_size`"),
        ("unlikelihood.grid.alpha", [-0.1], "unlikelihood.grid.alpha.0:"),
        ("unlikelihood.grid.alpha", [0, 0.0], "unlikelihood.grid: `alpha` lists a value twice"),
        ("unlabelled.grid.labelled", [0], "unlabelled.grid.labelled.0:"),
        ("unlabelled.grid.labelled", [1.5], "unlabelled.grid.labelled.0:"),
        ("unlabelled.grid.labelled", [0.5], "`labelled` and `seed` are both empty, or neither"),
        ("best_of_n.grid.n", [0], "best_of_n.grid.n.0:"),
        ("best_of_n.grid.n", [4], "the best of 4 is chosen among fresh draws for each of the 2"),
        ("optimum.samples", 29, "optimum.samples: 29 draws can't have an effective sample size"),
        ("promotion.methods", ["best_of_n"], "promotion.methods.0"),
        ("promotion.margins", {"quiz": 0.1}, "`margins` needs `default`"),
        ("promotion.margins", {"default": -0.1}, "promotion.margins.default"),
        ("promotion.detect.win_rate", 0.5, "promotion.detect.win_rate"),
        ("promotion.seeds", 0, "promotion.seeds"),
        ("run.registered_model", "org/model", "run.registered_model: a model's name"),
        ("run.registered_model", "", "run.registered_model:"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], key: str, value: Any, message: str) -> None:
    put(values, key, value)
    with pytest.raises(UserError) as error:
        parse_params(values)
    assert message in str(error.value)
    assert "Traceback" not in str(error.value)


def test_looks_are_of_a_policy_in_one_process(values: dict[str, Any]) -> None:
    values["dpo"]["training"]["processes"] = 2
    parse_params(values)
    values["curve"]["points"] = 3
    with pytest.raises(UserError, match=r"curve\.points looks at a policy in one process"):
        parse_params(values)


def test_states_are_taught_in_a_warm_up(values: dict[str, Any]) -> None:
    training = values["ppo"]["training"]
    training["teach_states"], training["critic_warmup"] = True, 0
    with pytest.raises(UserError, match="`teach_states` is in the critic's warm-up"):
        parse_params(values)
    training["critic_warmup"] = 1
    assert parse_params(values).ppo.training.teach_states


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("base_url", "127.0.0.1:8000", "`base_url` must be like http"),
        ("base_url", "https://sk-secret@host/v1", "`base_url` must be like http"),
        ("base_url", "https://host/v1?key=sk-secret", "`base_url` must be like http"),
        ("base_url", "http://127.0.0.1:80O0/v1", "`base_url` must be like http"),
        ("base_url", "http://host:99999/v1", "`base_url` must be like http"),
        ("base_url", "http://[::1/v1", "`base_url` must be like http"),
        ("temperature", float("inf"), "compare.llm.temperature:"),
        ("timeout", float("inf"), "compare.llm.timeout:"),
        ("options", {"top_p": float("nan")}, "`options` are sent as JSON"),
        ("options", {"user": date(2024, 1, 1)}, "`options` are sent as JSON"),
        ("key_variable", "sk-secret", "never the key itself"),
        ("key_variable", "sk_secret", "never the key itself"),
        ("template", "dialog", "`template` is a file in data/, or one of summarisation_simple"),
        ("template", "../mine.txt", "compare.llm.template '../mine.txt' is not in data/"),
        ("options", {"stream": True}, "`options` can't hold 'stream'"),
        ("options", {"temperature": 1.0}, "`options` can't hold 'temperature'"),
        ("prompt_price", 1.0, "are both null, or neither"),
        ("concurrency", 0, "compare.llm.concurrency:"),
        ("retries", -1, "compare.llm.retries:"),
    ],
)
def test_a_wrong_endpoint_is_named_and_no_key_is_shown(
    values: dict[str, Any], key: str, value: Any, message: str
) -> None:
    llm = settings("http://127.0.0.1:8000/v1").model_dump()
    put(values, "compare.llm", llm)
    assert parse_params(values).compare.llm is not None
    put(values, "compare.llm", llm | {key: value})
    with pytest.raises(UserError) as error:
        parse_params(values)
    assert message in str(error.value)
    assert "secret" not in str(error.value)


def test_a_template_of_ones_own_lies_in_data(values: dict[str, Any]) -> None:
    llm = settings("https://host", template="data/mine.txt").model_dump()
    put(values, "compare.llm", llm)
    assert parse_params(values).compare.llm.template == "data/mine.txt"  # type: ignore[union-attr]


@pytest.mark.parametrize("stage", ["pairs", "ppo.training", "sample", "benchmark"])
def test_every_engine_of_vllms_wants_heads_that_it_can_run(
    values: dict[str, Any], stage: str
) -> None:
    put(values, "model.scratch.hidden", 64)
    for other in ("pairs", "ppo.training", "sample", "benchmark"):
        put(values, f"{other}.engine", "vllm" if other == stage else "hf")
    with pytest.raises(UserError, match="vLLM's attention on a CPU"):
        parse_params(values)


def test_limits_that_a_source_of_pairs_does_not_read_may_be_of_any_length(
    values: dict[str, Any], repository: Path
) -> None:
    put(values, "pairs.max_completion_tokens", 9999)
    parse_params(values)
    human = yaml.safe_load((repository / "presets" / "hh-sample.yaml").read_text())
    put(human, "pairs.max_new_tokens", 9999)
    parse_params(human)


def test_value_steps_need_steps_after_them(values: dict[str, Any]) -> None:
    put(values, "dpo.online.value_steps", values["dpo"]["online"]["steps"])
    with pytest.raises(UserError, match="value_steps must be fewer than steps"):
        parse_params(values)


def test_online_dpo_is_of_one_process(values: dict[str, Any]) -> None:
    put(values, "dpo.grid.method", ["dpo", "online_dpo"])
    parse_params(values)
    put(values, "dpo.training.processes", 2)
    with pytest.raises(UserError, match="draws its pairs in one process"):
        parse_params(values)


PRESETS = sorted(Path(__file__).resolve().parents[1].glob("presets/*.yaml"))


@pytest.mark.parametrize("path", [Path("params.yaml"), *PRESETS], ids=lambda path: path.stem)
def test_every_preset_asks_for_the_prompts_that_its_promotion_needs(
    repository: Path, path: Path
) -> None:
    found = parse_params(yaml.safe_load((repository / path).read_text()))
    assert found.promotion.detect is not None
    methods = found.promotion.methods
    challenger = next(arm for arm in arms(found) if arm.method in methods)
    needed = prompts_needed(
        **found.promotion.detect.model_dump(),
        completions=len(found.sample.seeds),
        correlation=0.25,  # the default run's highest is 0.23
        confidence=simultaneous(
            found.compare.confidence, len(candidates(arms(found), methods, challenger))
        ),
    )
    assert needed <= found.sample.prompts


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ppo.grid.method", ["ppo", "ppo_gt"], "ppo_gt is of the embedded world alone"),
        ("dpo.grid.method", ["online_dpo"], "online_dpo is of the embedded world alone"),
        ("best_of_n.grid.scorer", ["gold"], "gold is of the embedded world alone"),
        ("data.text", "/tmp/text.txt", "dvc import-url /tmp/text.txt data/"),
        ("data.text", "data/../text.txt", "is not in data/"),
        ("pairs.max_completion_tokens", 900, "pairs.max_completion_tokens = 1"),
        ("data.hub_split", "train", "data: source 'hh' does not read `hub_split`: set null"),
    ],
)
def test_every_mistake_about_human_pairs_is_one_message(
    repository: Path, key: str, value: Any, message: str
) -> None:
    human = yaml.safe_load((repository / "presets" / "hh-sample.yaml").read_text())
    put(human, key, value)
    with pytest.raises(UserError, match=message):
        parse_params(human)


def test_what_the_readme_changes_for_data_of_ones_own_is_valid_and_all_needed(
    repository: Path,
) -> None:
    blocks = re.findall(
        r"```yaml\n *# (\S+)\n(.*?)```", (repository / "README.md").read_text(), re.S
    )
    assert [start for start, _ in blocks] == ["presets/hh.yaml", "params.yaml"]
    changes = {start: yaml.safe_load(block) for start, block in blocks}
    changes["presets/hh-sample.yaml"] = {
        key: value for key, value in changes["params.yaml"].items() if key.startswith("data.")
    }
    for start, changed in changes.items():
        own = yaml.safe_load((repository / start).read_text())
        for key, value in changed.items():
            put(own, key, value)
        data = parse_params(own).data
        assert (data.source, data.path) == ("jsonl", "data/pairs.jsonl")
    for key in changes["params.yaml"]:
        own = yaml.safe_load((repository / "params.yaml").read_text())
        for other in changes["params.yaml"].keys() - {key}:
            put(own, other, changes["params.yaml"][other])
        with pytest.raises(UserError):
            parse_params(own)


def test_ipo_and_slic_are_as_published_and_dpo_as_set(values: dict[str, Any]) -> None:
    for key, value in {
        "label_smoothing": 0.1,
        "length_normalised": True,
        "sft_weight": 0.5,
    }.items():
        put(values, f"dpo.training.{key}", value)
    training = parse_params(values).dpo.training
    assert training.of("dpo") is training
    for method, loss in (("ipo", "ipo"), ("slic", "hinge")):
        found = training.of(method)  # type: ignore[arg-type]
        assert (found.loss, found.label_smoothing, found.length_normalised) == (loss, 0.0, False)
        assert (found.sft_weight, found.batch_size) == (0.5, training.batch_size)


def test_alpha_0_is_preferred_ft_and_an_empty_list_leaves_a_method_out(
    values: dict[str, Any],
) -> None:
    assert {arm.stage for arm in arms(parse_params(values))} == {"sft", "dpo", "ppo"}
    put(values, "unlikelihood.grid.alpha", [0, 0.5])
    put(values, "best_of_n.grid.n", [1, 16])
    put(values, "optimum.samples", 31)  # one too few for two seeds of 16
    with pytest.raises(UserError, match="which is 31"):
        parse_params(values)
    put(values, "optimum.samples", 32)
    sweep = arms(parse_params(values))
    assert [(arm.method, arm.name) for arm in sweep if arm.stage == "unlikelihood"] == [
        ("preferred_ft", "unlikelihood-a0-lr0.0005-s0"),
        ("unlikelihood", "unlikelihood-a0.5-lr0.0005-s0"),
    ]
    chosen = [arm for arm in sweep if not arm.has_model]
    assert [arm.name for arm in chosen] == [
        "best_of_n-reward_model-n1",
        "best_of_n-reward_model-n16",
        "best_of_n-gold-n1",
        "best_of_n-gold-n16",
    ]
    with pytest.raises(ValueError, match="has no model"):
        assert chosen[0].model_dir
    put(values, "unlikelihood.grid.seed", [])
    assert all(arm.stage != "unlikelihood" for arm in arms(parse_params(values)))


def test_every_wrong_key_is_in_the_one_message(values: dict[str, Any]) -> None:
    del values["sft"]["seed"]
    values["ppo"]["training"]["clip"] = 0
    with pytest.raises(UserError) as error:
        parse_params(values)
    assert "sft.seed: this key is missing" in str(error.value)
    assert "ppo.training.clip" in str(error.value)


def test_text_that_is_not_yaml_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("run: [1, 2")
    with pytest.raises(UserError, match="not YAML"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(UserError, match="missing"):
        load_params(tmp_path / "none.yaml")
    for text, what in (("", "is empty"), ("[1, 2]", "is no mapping")):
        (tmp_path / "params.yaml").write_text(text)
        with pytest.raises(UserError, match=what):
            load_params(tmp_path / "params.yaml")


def test_the_experiment_on_unlabelled_prompts_is_beside_the_sweep(values: dict[str, Any]) -> None:
    before = parse_params(values)
    assert unlabelled_arms(before) == []
    put(values, "unlabelled.grid", {"labelled": [0.05, 1], "seed": [0, 2]})
    params = parse_params(values)
    assert arms(params) == arms(before)
    found = unlabelled_arms(params)
    assert len({arm.name for arm in found}) == len(found) == 4 * 2 * 2
    assert [arm.name for arm in found[:4]] == [
        "unlabelled-dpo-f0.05-s0",
        "unlabelled-dpo_reward_model-f0.05-s0",
        "unlabelled-dpo_implicit-f0.05-s0",
        "unlabelled-ppo-f0.05-s0",
    ]
    assert found[-1].name == "unlabelled-ppo-f1-s2"
    assert (found[-1].beta, found[0].beta) == (params.unlabelled.ppo_beta, params.unlabelled.beta)


def test_arms_are_named_as_dvc_names_their_outputs(
    repository: Path, values: dict[str, Any], tmp_path: Path
) -> None:
    from dvc.repo import Repo

    trained = {"learning_rate": [1.0e-6, 0.001], "seed": [0, 3]}
    values["dpo"]["grid"] = {
        "method": ["dpo", "slic", "online_dpo"],
        "beta": [0.1, 1, 2.0],
        **trained,
    }
    values["ipo"]["grid"] = {"beta": [0.1, 2], **trained}
    values["unlikelihood"]["grid"] = {"alpha": [0, 0.05, 1.0], **trained}
    ppo = {"method": ["ppo", "ppo_gt"], "beta": [0.1, 1], "target_kl": [0, 0.5, 6.0]}
    values["ppo"]["grid"] = {**ppo, **trained}
    values["unlabelled"]["grid"] = {"labelled": [0.05, 1], "seed": [0, 2]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "dvc.yaml").write_text((repository / "dvc.yaml").read_text())
    Repo.init(str(tmp_path), no_scm=True)
    found = {
        str(Path(out.fs_path).relative_to(tmp_path))
        for stage in Repo(str(tmp_path)).index.stages
        for out in stage.outs
    }
    sweep = arms(load_params(tmp_path / "params.yaml"))
    assert len(sweep) == len({arm.name for arm in sweep}) == 1 + (3 * 3 + 2 + 3 + 2 * 2 * 3) * 4
    for arm, (folder, ending) in product(sweep, [("samples", "parquet"), ("benchmark", "json")]):
        assert f"out/{folder}/{arm.name}.{ending}" in found
    assert {str(arm.model_dir) for arm in sweep} <= found
    params = load_params(tmp_path / "params.yaml")
    assert {str(arm.model_dir) for arm in unlabelled_arms(params)} <= found
    assert {str(fresh_pairs_dir(seed)) for seed in (0, 2)} <= found
