"""Promotion with a real MLflow: what becomes champion, what does not and why, and back again."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from endpoints import Reply, said, serve, texts, verdict
from endpoints import settings as llm_settings
from mlflow.artifacts import download_artifacts
from promotions import BETTER, GOOD, SAME, benchmark, judged

from betaflow.config import Arm, LLMSettings, Params, arms, load_params
from betaflow.errors import UserError
from betaflow.evaluation.alignment_tax import paired_difference
from betaflow.evaluation.promotion import Rule, candidates
from betaflow.evaluation.win_rate import KEYS
from betaflow.io import read_json, write_json, write_jsonl
from betaflow.policy.loading import load_policy, load_reward_model, load_tokenizer, save_model
from betaflow.report.estimates import interval
from tasks import _claim, _registry, _rules, promote, tracking
from tasks._evidence import Evidence, inputs, model_files, of_version
from tasks._registry import Registry
from tasks._rules import judged_against
from tasks.promote import Decision, promote_arm
from tasks.rollback import roll_back
from tasks.sample import samples


def registry() -> Registry:
    return Registry(tracking.client(), "betaflow")


def champion() -> int | None:
    found = registry().holder("champion")
    return None if found is None else found.number


def told(number: int) -> tuple[str, str, str]:
    """What a version, its arm's run and its description say of the decision."""
    client = tracking.client()
    version = client.get_model_version("betaflow", str(number))
    run = client.get_run(version.run_id).data.tags
    return version.tags["betaflow.decision"], run["betaflow.decision"], version.description


def failed(decision: Decision) -> set[str]:
    return {rule.name for rule in decision.rules if not rule.held}


def change(params: Params, **promotion: Any) -> Params:
    rules = params.promotion.model_copy(update=promotion)
    return params.model_copy(update={"promotion": rules})


def test_a_good_arm_becomes_champion_whole_and_with_its_card(sweep: Params) -> None:
    decision = promote_arm(sweep, GOOD)
    assert decision.promoted, decision.markdown
    assert (decision.version, decision.against, decision.replaced) == (1, "sft", None)
    assert {rule.name for rule in decision.rules} == {
        "another_model", "not_rolled_back", "win_rate", "length_controlled_win_rate", "verdicts",
        "quiz/acc", "kl", "prompts", "seeds", "controls",
    }  # fmt: skip
    assert champion() == 1
    assert registry().holder("challenger") is None

    client = tracking.client()
    version = client.get_model_version("betaflow", "1")
    assert version.tags["betaflow.decision"] == "accepted"
    assert version.tags["betaflow.rule.kl"].startswith("held: Its KL from the reference is ")
    assert "| win_rate | yes |" in version.description
    run = client.get_run(version.run_id).data.tags
    assert run["betaflow.decision"] == "accepted"
    assert run["betaflow.version"] == "1"
    assert run["betaflow.arm"] == GOOD

    import mlflow

    place = Path("fetched")
    place.mkdir()
    whole = Path(mlflow.artifacts.download_artifacts("models:/betaflow@champion", dst_path=place))
    card = (whole / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["pipeline_tag"] == "text-generation"
    assert "dpo" in front["tags"]
    # It loads what it is about, whoever is champion.
    address = card.split('load_model("')[1].split('"')[0]
    assert address == version.source
    assert f"download -u {address} " in card
    assert "@champion" not in card
    for part in ("git commit", "dvc.lock", "| quiz/acc | yes |", "## Limits", "learning_rate:"):
        assert part in card
    assert str(Path.cwd()) not in card
    # What vLLM serves: the very files that the stages `sample` and `benchmark` loaded.
    arm = Path("out/dpo", GOOD)
    assert {p.name: p.read_bytes() for p in model_files(whole / "model")} == {
        p.name: p.read_bytes() for p in model_files(arm)
    }
    found = mlflow.transformers.load_model(address)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(found.model(ids).logits, load_policy(arm)(ids).logits)
    # What it generates ends where the samples that it was judged by do.
    assert found.model.generation_config.eos_token_id == found.tokenizer.eos_token_id
    assert found.tokenizer("the plot").input_ids == load_tokenizer(arm)("the plot").input_ids


def test_better_ones_take_over_and_rollback_leads_back(sweep: Params) -> None:
    with pytest.raises(UserError, match=r"no champion to roll back; `make promote`"):
        roll_back(sweep)
    assert promote_arm(sweep, GOOD).promoted
    second = promote_arm(sweep)  # the first of the two with the highest win rate
    assert second.promoted, second.markdown
    assert (second.arm, second.against) == (BETTER, f"version 1 ({GOOD})")
    tags = tracking.client().get_model_version("betaflow", "2").tags
    assert tags["betaflow.rule.quiz/acc against SFT"].startswith("held: Against SFT: Its acc on ")
    assert (champion(), second.replaced) == (2, 1)

    # A champion against itself: by its name, and by the numbers.
    itself = promote_arm(sweep)
    assert not itself.promoted
    assert {"another_model", "win_rate", "length_controlled_win_rate"} <= failed(itself)
    (rate,) = [rule for rule in itself.rules if rule.name == "win_rate"]
    assert (rate.found, rate.needed) == (0.5, 0.5)
    assert champion() == 2

    # Another model that is no better; it stays challenger, and is not copied again.
    same = promote_arm(sweep, SAME)
    assert failed(same) == {"win_rate", "length_controlled_win_rate"}
    assert registry().holder("challenger") == registry().version(same.version)
    tags = registry().version(same.version).tags  # type: ignore[union-attr]
    assert tags["betaflow.decision"] == "refused"
    assert tags["betaflow.rule.win_rate"].startswith("failed: It wins ")
    assert promote_arm(sweep, SAME).version == same.version
    assert champion() == 2

    back = roll_back(sweep)
    assert (back.was, back.version, champion()) == (2, 1, 1)
    version, run, text = told(2)
    assert (version, run) == ("rolled back", "refused")  # the run is about its latest version
    assert text.startswith("**Rolled back.** Version 1 of betaflow is champion again, instead of 2")
    assert "Promoted" not in text
    assert "| win_rate | yes |" in text
    assert told(1)[:2] == ("accepted", "accepted")
    with pytest.raises(UserError, match="version 1 of betaflow is the first champion"):
        roll_back(sweep)
    assert champion() == 1
    # What was rolled back comes back by its name alone.
    refused = promote_arm(sweep)
    assert failed(refused) == {"not_rolled_back"}
    assert "rolled back as version 2" in refused.markdown
    # The way leads on from here: once more, and back.
    again = promote_arm(sweep, BETTER)
    assert again.promoted
    assert again.version not in (1, 2)
    assert roll_back(sweep).version == 1
    assert told(again.version)[:2] == ("rolled back", "rolled back")
    tracking.client().delete_model_version("betaflow", "2")
    assert promote_arm(sweep, BETTER).promoted
    assert roll_back(sweep).version == 1


@pytest.mark.parametrize("deleted", ["alias", "version"])
def test_a_champion_that_was_lost_is_not_replaced_by_sft(sweep: Params, deleted: str) -> None:
    assert promote_arm(sweep, GOOD).promoted
    assert promote_arm(sweep, BETTER).promoted
    client = tracking.client()
    if deleted == "alias":
        client.delete_registered_model_alias("betaflow", "champion")
    else:
        client.delete_model_version("betaflow", "2")
    was = "2" if deleted == "alias" else "1"
    with pytest.raises(UserError, match=f"no champion, though version {was} was one"):
        promote_arm(sweep, SAME)
    client.set_registered_model_alias("betaflow", "champion", was)
    assert promote_arm(sweep, SAME).against.startswith(f"version {was}")


def test_a_rollback_that_can_not_be_recorded_says_that_it_is_done(
    sweep: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    assert promote_arm(sweep, GOOD).promoted
    assert promote_arm(sweep, BETTER).promoted

    def failing(*_: Any, **__: Any) -> None:
        raise MlflowException("the connection was lost")

    monkeypatch.setattr(MlflowClient, "update_model_version", failing)
    with pytest.raises(UserError, match=r"^Version 1 .* again, instead of 2\. .*don't roll back"):
        roll_back(sweep)
    assert champion() == 1


def test_every_reason_to_refuse(sweep: Params) -> None:
    strict = change(sweep, kl_budget=1.0, seeds=2, margins={"default": 0.001})
    write_json(f"out/benchmark/{GOOD}.json", benchmark(GOOD, right=60))
    judged(Path("out"), "null")
    decision = promote_arm(strict, GOOD)
    assert failed(decision) == {"quiz/acc", "kl", "seeds", "controls"}
    version = tracking.client().get_model_version("betaflow", "1")
    card = Path(download_artifacts("models:/betaflow/1/README.md")).read_text()
    assert f'load_model("{version.source}")' in card
    assert "@champion" not in card  # there is none, or it is another model
    assert champion() is None
    assert registry().holder("challenger").number == decision.version  # type: ignore[union-attr]
    assert "**no** | The judge failed null" in decision.markdown
    # Each rule that may be null is then not asked for.
    judged(Path("out"))
    lax = change(strict, kl_budget=None, margins=None, detect=None, seeds=1)
    decision = promote_arm(lax, GOOD)
    assert decision.promoted
    assert {rule.name for rule in decision.rules} == {
        "another_model", "not_rolled_back", "win_rate", "length_controlled_win_rate", "verdicts",
        "seeds", "controls",
    }  # fmt: skip


def rules(params: Params, arm: Arm, challenger: Evidence, other: Evidence) -> list[Rule]:
    verdicts, _ = judged_against(params, challenger, other)
    return _rules.rules(params, arm, challenger, other, verdicts)


def evidence(name: str, **changes: Any) -> Evidence:
    table = pd.read_parquet(f"out/samples/{name}.parquet").assign(**changes)
    return Evidence(name, table, benchmark(name), name)


def test_an_arm_trained_anew_is_not_judged_by_the_seeds_of_its_champion(sweep: Params) -> None:
    """The champion has the same name, and so the same seeds: what is paired must be other draws."""
    drawn = pd.DataFrame(
        [
            {"prompt_id": prompt, "domain": "in", "temperature": 1.0, "seed": seed,
             "completion": f"{prompt}{seed}", "completion_tokens": seed, "gold_reward": seed}
            for prompt in "ab" for seed in (3, 5, 9)
        ]
    )  # fmt: skip
    new = Evidence(GOOD, drawn, {}, "new", GOOD)
    old = Evidence(f"version 1 ({GOOD})", drawn, {}, "old", GOOD)

    def partners(champion: Evidence) -> set[tuple[str, str]]:
        pairs, _ = judged_against(sweep, new, champion)
        return set(zip(pairs["completion_a"], pairs["completion_b"], strict=True))

    itself = {(f"{prompt}{seed}",) * 2 for prompt in "ab" for seed in (3, 5, 9)}
    assert partners(old._replace(content="new")) == itself  # the very model
    assert partners(old._replace(drawn_as="model")) == itself  # its draws have other seeds
    turned = {
        (f"{p}{ours}", f"{p}{theirs}") for p in "ab" for ours, theirs in ((3, 9), (5, 3), (9, 5))
    }
    assert partners(old) == turned
    greedy = drawn[drawn["seed"] == 3]
    alone = [found._replace(samples=greedy) for found in (new, old)]
    pairs, _ = judged_against(sweep, *alone)
    assert len(pairs) == 2


def test_naming_an_arm_of_another_method_widens_its_intervals(sweep: Params) -> None:
    (arm,) = [arm for arm in arms(sweep) if arm.name == GOOD]
    good, sft = evidence(GOOD), evidence("sft")
    lows = []
    # Of the three models, all may be challenger; of no method that may be, any could have been.
    for methods in (["dpo"], ["ppo"], ["sft"]):
        found = rules(change(sweep, methods=methods), arm, good, sft)
        (rate,) = [rule for rule in found if rule.name == "win_rate"]
        among = 4 if methods == ["sft"] else 3
        assert f"({100 - 5 / among:.4g}% interval)" in rate.reason
        lows.append(rate.found)
    assert lows[0] == lows[1] > lows[2]  # type: ignore[operator]


def benchmark_of(params: Params, tasks: list[str]) -> Params:
    section = params.benchmark.model_copy(update={"tasks": tasks})
    return params.model_copy(update={"benchmark": section})


def test_of_the_perplexities_one_is_judged_and_a_rise_is_the_loss(sweep: Params) -> None:
    (arm,) = [arm for arm in arms(sweep) if arm.name == GOOD]

    def text(nats: float) -> dict[str, Any]:
        rows = [[-nats * words, words] for words in range(5, 50)]
        metrics = ("word_perplexity", "byte_perplexity", "bits_per_byte")
        results = {metric: rows for metric in metrics}
        found = {"results": {"quiz": {"bits_per_byte": nats}}}
        found["documents"] = {"quiz": {"hash": "h", "results": results}}
        return found | {"higher_is_better": {"quiz": dict.fromkeys(metrics, False)}}

    sft = evidence("sft")._replace(benchmark=text(1.0))
    for nats, held in ((0.5, True), (1.05, True), (1.1, False)):
        challenger = evidence(GOOD)._replace(benchmark=text(nats))
        found = {rule.name: rule for rule in rules(sweep, arm, challenger, sft)}
        assert [name for name in found if "/" in name] == ["quiz/bits_per_byte"]
        assert found["quiz/bits_per_byte"].held is held
        assert found["quiz/bits_per_byte"].found == pytest.approx((1.0 - nats) / math.log(2))


def test_a_rise_of_lm_eval_s_perplexity_is_the_loss(sweep: Params) -> None:
    """Its documents have log-likelihoods, of which a rise is a gain."""
    (arm,) = [arm for arm in arms(sweep) if arm.name == GOOD]

    def lambada(nats: float) -> dict[str, Any]:
        results = {"perplexity": [[-nats - n / 100, 1.0] for n in range(50)]}
        found = {"results": {"quiz": {"perplexity": 1.0}}}
        found["documents"] = {"quiz": {"hash": "h", "results": results}}
        return found | {"higher_is_better": {"quiz": {"perplexity": False}}}

    sft = evidence("sft")._replace(benchmark=lambada(1.0))
    for nats, held in ((0.5, True), (1.5, False)):
        challenger = evidence(GOOD)._replace(benchmark=lambada(nats))
        found = {rule.name: rule for rule in rules(sweep, arm, challenger, sft)}
        assert found["quiz/perplexity"].held is held


def test_champions_in_a_row_can_not_lose_a_margin_each(sweep: Params) -> None:
    (arm,) = [arm for arm in arms(sweep) if arm.name == BETTER]
    sft = Evidence("sft", evidence("sft").samples, benchmark("sft"), None)
    before = evidence(GOOD)._replace(name="version 1", benchmark=benchmark(GOOD, 78))
    lost = evidence(BETTER)._replace(benchmark=benchmark(BETTER, 76))  # SFT has 80 of 100 right

    def of_tasks(challenger: Evidence, other: Evidence) -> dict[str, bool]:
        found = rules(sweep, arm, challenger, other)
        return {rule.name: rule.held for rule in found if "/" in rule.name}

    assert of_tasks(before, sft) == {"quiz/acc": True}
    assert of_tasks(lost, before) == {"quiz/acc": True, "quiz/acc against SFT": False}
    assert of_tasks(before, before) == {"quiz/acc": True, "quiz/acc against SFT": True}
    without = change(sweep, margins=None)
    assert not [rule for rule in rules(without, arm, lost, before) if "/" in rule.name]


def test_every_interval_holds_for_all_arms_that_could_have_been_chosen(sweep: Params) -> None:
    """Whoever names an arm may have seen its lm-eval results and its KL."""
    (arm,) = [arm for arm in arms(sweep) if arm.name == GOOD]
    three = [other for other in arms(sweep) if other.name in (GOOD, BETTER, SAME)]
    assert len(candidates(three, sweep.promotion.methods, arm)) == 3
    challenger, sft = evidence(GOOD)._replace(benchmark=benchmark(GOOD, 74)), evidence("sft")
    found = {rule.name: rule for rule in rules(sweep, arm, challenger, sft)}
    documents = [
        np.asarray(one.benchmark["documents"]["quiz"]["results"]["acc"])
        for one in (challenger, sft)
    ]
    told = paired_difference(
        *documents, "acc", resamples=200, confidence=1 - 0.05 / 3, seed=sweep.compare.seed
    ).difference
    assert found["quiz/acc"].found == told.low
    inside = challenger.samples
    one = sweep.compare.model_copy(update={"confidence": 1 - 0.05 / 3})
    assert found["kl"].found == interval(inside["kl"], inside["prompt_id"], one).high


def test_verdicts_that_are_missing_because_they_were_lost_buy_no_win(
    sweep: Params,
) -> None:
    (arm,) = [arm for arm in arms(sweep) if arm.name == GOOD]
    told, _ = judged_against(sweep, evidence(GOOD), evidence("sft"))
    even = told.assign(preference=[1.0, 0.0] * 60)
    kept = even.copy()
    kept.loc[kept.index[kept["preference"] == 0.0][:12], "preference"] = float("nan")  # a tenth

    def of(verdicts: pd.DataFrame, name: str) -> Any:
        found = _rules.rules(sweep, arm, evidence(GOOD), evidence("sft"), verdicts)
        return {rule.name: rule for rule in found}[name]

    assert of(even, "verdicts").held
    assert not of(kept, "verdicts").held
    won = even.assign(preference=1.0)
    won.loc[won.index[:12], "preference"] = float("nan")
    assert of(won, "verdicts").held


def test_missing_verdicts_buy_no_length_controlled_win(sweep: Params) -> None:
    """A longer challenger that wins by its length: the plain win stands, the other one does not."""
    (arm,) = [arm for arm in arms(sweep) if arm.name == GOOD]
    told, _ = judged_against(sweep, evidence(GOOD), evidence("sft"))
    random = np.random.default_rng(0)
    told["completion_tokens_a"] = told["completion_tokens_b"] + random.normal(5, 10, len(told))
    longer = told["completion_tokens_a"] - told["completion_tokens_b"]
    told["preference"] = (random.random(len(told)) < 1 / (1 + np.exp(-0.9 - longer / 10))) * 1.0
    kept = told.copy()
    kept.loc[kept.index[kept["preference"] == 0.0][:12], "preference"] = float("nan")
    found = {
        rule.name: rule for rule in _rules.rules(sweep, arm, evidence(GOOD), evidence("sft"), kept)
    }
    assert found["win_rate"].held
    assert found["length_controlled_win_rate"].held
    assert not found["verdicts"].held


def test_what_was_not_measured_is_not_passed_over(sweep: Params) -> None:
    (arm,) = [arm for arm in arms(sweep) if arm.name == GOOD]

    def missing(challenger: Evidence, other: Evidence) -> set[str]:
        found = rules(sweep, arm, challenger, other)
        return {rule.name for rule in found if "Not measured" in rule.reason and not rule.held}

    sft, good = evidence("sft"), evidence(GOOD)
    assert missing(good, sft) == set()
    assert missing(evidence(GOOD, kl=float("nan")), sft) == {"kl"}
    one = evidence(GOOD)
    one.samples.loc[one.samples.index[0], "kl"] = float("nan")
    assert missing(one, sft) == {"kl"}
    assert missing(evidence(GOOD, gold_reward=float("nan")), sft) == {
        "win_rate", "length_controlled_win_rate", "prompts",
    }  # fmt: skip
    old = {"arm": GOOD, "results": {"quiz": {"acc": 0.8}}}  # of before documents were kept
    assert missing(good._replace(benchmark=old), sft) == {"quiz/documents"}
    assert missing(good, sft._replace(benchmark=old)) == {"quiz/documents"}
    others = benchmark(GOOD)
    others["documents"]["quiz"]["hash"] = "other documents"
    assert missing(good._replace(benchmark=others), sft) == {"quiz/documents"}
    infinite = benchmark(GOOD)
    infinite["documents"]["quiz"]["results"]["acc"][3] = float("nan")
    assert missing(good._replace(benchmark=infinite), sft) == {"quiz/acc"}
    none = {"arm": GOOD, "results": {}}
    assert missing(good._replace(benchmark=none), sft._replace(benchmark=none)) == {
        "quiz/documents"
    }
    group = benchmark(GOOD)
    group["results"]["quizzes"] = {"acc": 0.8}  # of several tasks, which have the documents
    several = benchmark_of(sweep, ["quizzes"])
    assert not [r for r in rules(several, arm, good._replace(benchmark=group), sft) if not r.held]
    judged(Path("out"), unmeasured=("self", "longest"))  # as with one draw a prompt
    assert missing(good, sft) == {"controls"}
    judged(Path("out"))
    summary = Path("out/judgements/summary.json")
    summary.write_text(summary.read_text().replace('"gold"', '"reward_model"'))
    assert missing(good, sft) == {"controls"}
    by_model = sweep.model_copy(
        update={"compare": sweep.compare.model_copy(update={"judge": "reward_model"})}
    )
    found = {rule.name: rule for rule in rules(by_model, arm, good, sft)}
    assert found["accuracy"].reason.startswith("Not measured")
    document = read_json("out/compare/estimates.json")
    for low, held in ((0.49, False), (0.51, True)):
        told = {"accuracy": 0.55, "low": low, "high": 0.6, "pairs": 90}
        write_json(Path("out/compare/estimates.json"), {**document, "reward_model": told})
        found = {rule.name: rule for rule in rules(by_model, arm, good, sft)}
        assert found["accuracy"].held is held
    assert found["controls"].held
    summary.unlink()
    assert missing(good, sft) == {"controls"}


def test_a_metric_without_results_by_document_does_not_drop_out(sweep: Params) -> None:
    """Matthews correlation and F1 are of all documents at once: their collapse passed unseen."""
    (arm,) = [arm for arm in arms(sweep) if arm.name == GOOD]

    def broken(params: Params, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, str]:
        sides = (evidence(name)._replace(benchmark=one) for name, one in
                 ((GOOD, ours), ("sft", theirs)))  # fmt: skip
        return {rule.name: rule.reason for rule in rules(params, arm, *sides) if not rule.held}

    def mixed(f1: float, name: str) -> dict[str, Any]:
        found = benchmark(name)
        found["results"]["quiz"] |= {"acc_stderr": 0.04, "f1": f1, "f1_stderr": 0.01}
        return found

    found = broken(sweep, mixed(0.1, GOOD), mixed(0.9, "sft"))
    assert set(found) == {"quiz/f1"}
    assert "no f1 of quiz by document" in found["quiz/f1"]
    assert "`quiz: null` in promotion.margins" in found["quiz/f1"]

    def cola(results: dict[str, float]) -> dict[str, Any]:
        documents = {"cola": {"hash": "h", "results": {}}}
        return {"results": {"cola": results}, "documents": documents}

    only = benchmark_of(sweep, ["cola"])
    assert set(broken(only, cola({"mcc": 0.0}), cola({"mcc": 0.6}))) == {"cola/mcc"}
    assert set(broken(only, cola({}), cola({}))) == {"cola/results"}
    left_out = change(only, margins={"default": 0.1, "cola": None})
    assert broken(left_out, cola({"mcc": 0.0}), cola({"mcc": 0.6})) == {}


def test_margins_of_what_was_not_measured_are_not_passed_over(sweep: Params) -> None:
    (arm,) = [arm for arm in arms(sweep) if arm.name == GOOD]
    for wrong in ({"quizz": 0.001}, {"mmlu": None}):  # a slip, and a group of tasks
        params = change(sweep, margins={"default": 0.1, **wrong})
        with pytest.raises(UserError, match=f"names {next(iter(wrong))}, .* it may name quiz "):
            rules(params, arm, evidence(GOOD), evidence("sft"))
    nothing = {"arm": GOOD, "results": {}, "documents": {}}
    sides = [evidence(name)._replace(benchmark=nothing) for name in (GOOD, "sft")]
    no_task = benchmark_of(sweep, [])
    found = {rule.name: rule for rule in rules(no_task, arm, *sides)}
    assert not found["tasks"].held
    assert "`margins: null`" in found["tasks"].reason
    assert "tasks" not in {rule.name for rule in rules(change(no_task, margins=None), arm, *sides)}


def took_of(number: int) -> dict[str, str]:
    """What the judge took, by the tags of the run of a version's arm."""
    client = tracking.client()
    tags = client.get_run(client.get_model_version("betaflow", str(number)).run_id).data.tags
    return {key: value for key, value in tags.items() if key.startswith("betaflow.judge.")}


def judged_by(sweep: Params, llm: LLMSettings) -> Params:
    compare = sweep.compare.model_copy(update={"judge": "llm", "llm": llm})
    return sweep.model_copy(update={"compare": compare})


def test_a_language_model_judges_a_champion_when_they_first_meet(
    sweep: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against SFT its verdicts are the stage's; of another's completions it is asked, once."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    verdicts = pd.read_parquet(f"out/samples/{GOOD}.parquet")[KEYS]
    verdicts = verdicts.assign(
        arm=GOOD, baseline="sft", preference=[1.0, 0.5] * 60, ab="a", ba=["a", "b"] * 60, missing=""
    )
    verdicts.iloc[:-1].to_parquet("out/judgements/verdicts.parquet")

    def answer(body: dict[str, Any]) -> Reply:
        _, first, _ = texts(body["messages"][0]["content"])
        return verdict("A" if BETTER in first else "B")

    with serve(answer) as server:
        llm = llm_settings(server.url, model="m", prompt_price=1.0, completion_price=2.0)
        asking = judged_by(sweep, llm)
        known = judged_against(asking, evidence(GOOD), evidence("sft"))[0]["preference"]
        assert known.tolist()[:4] == [1.0, 0.5, 1.0, 0.5]
        assert known.isna().tolist() == [False] * 119 + [True]
        assert server.requests == []
        for _ in range(2):
            met, usage = judged_against(asking, evidence(BETTER), evidence(GOOD))
            assert set(met["preference"]) == {1.0}
            assert len(server.requests) == 2 * 60  # both orders; two seeds said the same
        # What a promotion takes is told by its arm's run, kept answers included.
        judged(Path("out"), judge=("llm", "m"))
        assert promote_arm(asking, GOOD).promoted
        assert promote_arm(asking, BETTER).promoted
        assert len(server.requests) == 2 * 60
    took = {"answers": 120, "prompt_tokens": 12000, "completion_tokens": 1200, "unreported": 0}
    took |= {"spend": usage["spend"], "models": "judge-2024"}  # type: ignore[index]
    assert took["spend"] == pytest.approx((12000 + 2 * 1200) / 1e6)
    runs = {
        number: tracking.client().get_model_version("betaflow", number).run_id for number in "12"
    }
    tags = {number: tracking.client().get_run(run).data.tags for number, run in runs.items()}
    told = {key: value for key, value in tags["2"].items() if key.startswith("betaflow.judge.")}
    assert told == {f"betaflow.judge.{key}": str(value) for key, value in took.items()}
    assert not [key for key in tags["1"] if key.startswith("betaflow.judge.")]  # against SFT


def test_a_judge_that_leaves_verdicts_on_a_champion_missing_promotes_nothing(
    sweep: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage's control is about SFT; a champion is judged afresh, and by then much may fail."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (arm,) = [arm for arm in arms(sweep) if arm.name == BETTER]

    def answer(body: dict[str, Any]) -> Reply:
        prompt, first, _ = texts(body["messages"][0]["content"])
        if int(prompt.split()[3]) < len(refused):
            return said("I would rather not say.")
        return verdict("A" if BETTER in first else "B")

    for refused, held in ((range(6), True), (range(7), False)):  # of 60 prompts
        with serve(answer) as server:
            llm = llm_settings(server.url, model=f"refuses {len(refused)}")
            asking = judged_by(sweep, llm)
            found = rules(asking, arm, evidence(BETTER), evidence(GOOD))
        (rule,) = [rule for rule in found if rule.name == "verdicts"]
        assert (rule.held, rule.found) == (held, len(refused) / 60)


def test_a_judge_that_goes_by_the_order_with_a_champion_promotes_nothing(
    sweep: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage's control is of SFT's draws; near a champion a judge may see no difference."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (arm,) = [arm for arm in arms(sweep) if arm.name == BETTER]

    def answer(body: dict[str, Any]) -> Reply:
        prompt, first, _ = texts(body["messages"][0]["content"])
        sees = int(prompt.split()[3]) < seen
        return verdict("A" if BETTER in first or not sees else "B")

    for seen, held in ((30, True), (10, False)):  # of 60 prompts
        with serve(answer) as server:
            llm = llm_settings(server.url, model=f"sees {seen}")
            asking = judged_by(sweep, llm)
            told = rules(asking, arm, evidence(BETTER), evidence(GOOD))
        found = {rule.name: rule for rule in told}
        assert found["win_rate"].held
        assert found["order"].held == held
        assert "of 120 pairs judged in both orders had one winner" in found["order"].reason


def test_a_champion_of_other_inputs_is_sampled_anew(
    sweep: Params, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promote_arm(sweep, GOOD).promoted
    version = registry().holder("champion")
    assert version is not None
    kept = of_version(sweep, registry(), version)
    pd.testing.assert_frame_equal(kept.samples, pd.read_parquet(f"out/samples/{GOOD}.parquet"))

    save_model(load_reward_model(tiny, new_head_seed=1), load_tokenizer(tiny), Path("out/reward"))
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["sample"] |= {"max_new_tokens": 5, "prompts": 4}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    params = load_params()
    write_jsonl("out/data/prompts_ood.jsonl", [{"id": "o", "prompt": "the book was"}])
    shutil.rmtree(f"out/dpo/{GOOD}")  # the registry alone has it
    made = of_version(params, registry(), version)
    assert "its samples are of other inputs; made anew" in capsys.readouterr().out
    assert made.benchmark == kept.benchmark
    assert made.content == kept.content
    assert registry().download(1, "nothing", Path.cwd()) is None
    assert set(made.samples["completion_tokens"]) <= set(range(6))
    assert made.samples["prompt_id"].nunique() == 4
    expected = samples(params, "model", download_artifacts("models:/betaflow@champion/model"))
    pd.testing.assert_frame_equal(made.samples, expected)

    tokenizer = Path("out/sft/tokenizer.json")
    tokenizer.write_text(tokenizer.read_text() + "\n")
    with pytest.raises(UserError, match=r"another tokenizer .*run.registered_model"):
        of_version(params, registry(), version)


def test_what_was_changed_in_the_store_is_not_believed(
    sweep: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promote_arm(sweep, GOOD).promoted
    version = registry().holder("champion")
    assert version is not None
    (table,) = [path for path in Path.cwd().rglob("evaluation/samples.parquet")]
    worse = pd.read_parquet(table)
    worse["gold_reward"] -= 10
    worse.to_parquet(table, index=False)
    with pytest.raises(UserError, match="could not be made anew"):  # without out/reward
        of_version(sweep, registry(), version)
    assert "its samples and benchmark are not what was registered; made anew" in (
        capsys.readouterr().out
    )
    (weights,) = [p for p in Path.cwd().rglob("model/model.safetensors") if "out" not in p.parts]
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    with pytest.raises(UserError, match="has other weights by now than were registered"):
        of_version(sweep, registry(), version)


def test_evidence_is_of_the_code_that_made_it(sweep: Params, repository: Path) -> None:
    """An old champion's gold rewards and a challenger's by other code can't be paired."""
    Path("betaflow").unlink()
    shutil.copytree(repository / "betaflow", "betaflow")
    before = inputs(sweep)
    for name, changed in {
        "worlds/lexicon.py": {"samples"},
        "sampling/decode.py": {"samples", "benchmark"},
        "evaluation/harness.py": {"benchmark"},
        "report/build.py": set(),
    }.items():
        file = Path("betaflow", name)
        kept = file.read_text()
        file.write_text(kept + "\n")
        now = inputs(sweep)
        assert {part for part in now if now[part] != before[part]} == changed
        file.write_text(kept)
    assert inputs(sweep) == before


def test_an_arm_trained_again_is_refused_before_anything_is_registered(sweep: Params) -> None:
    summary = Path(f"out/dpo/{GOOD}/summary.json")
    summary.write_text(summary.read_text().replace('"0000', '"1000'))
    with pytest.raises(UserError, match="trained again after the comparison"):
        promote_arm(sweep, GOOD)
    assert tracking.client().search_registered_models() == []


def test_a_claim_held_too_long_moves_nothing_and_one_left_behind_is_taken_away(
    sweep: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert promote_arm(sweep, GOOD).promoted
    client, left = tracking.client(), f"{_claim.CLAIM}dead"
    with monkeypatch.context() as patch:
        patch.setattr(_claim, "HASTE", -1.0)
        with pytest.raises(UserError, match="too slowly"):
            promote_arm(sweep, BETTER)
    assert champion() == 1
    assert told(2)[:2] == ("not moved", "not moved")
    assert told(2)[2].startswith("**Not moved.** Every rule held against version 1")
    assert client.get_registered_model("betaflow").tags == {}
    client.set_registered_model_tag("betaflow", left, "")
    waited: list[float] = []
    monkeypatch.setattr(_claim.time, "sleep", waited.append)
    monkeypatch.setattr(_claim, "PATIENCE", 0.05)
    assert promote_arm(sweep, BETTER).promoted
    assert waited
    assert client.get_registered_model("betaflow").tags == {}


@pytest.mark.parametrize(("moved", "state"), [(False, "not moved"), (True, "accepted")])
def test_what_is_recorded_of_a_registry_that_fails_is_what_the_alias_says(
    sweep: Params, monkeypatch: pytest.MonkeyPatch, moved: bool, state: str
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    assert promote_arm(sweep, GOOD).promoted
    real = MlflowClient.set_registered_model_alias

    def failing(self: MlflowClient, name: str, alias: str, version: str) -> None:
        if alias != "champion" or moved:
            real(self, name, alias, version)
        if alias == "champion":
            raise MlflowException("the connection was lost")

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", failing)
    if moved:  # the decision stands
        assert promote_arm(sweep, BETTER).promoted
    else:
        with pytest.raises(MlflowException, match="the connection was lost"):
            promote_arm(sweep, BETTER)
    assert champion() == (2 if moved else 1)
    assert told(2)[:2] == (state, state)
    assert (told(2)[2].startswith("**Promoted.**")) is moved


def test_a_promotion_that_mlflow_could_not_record_stands(
    sweep: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.exceptions import MlflowException

    real = promote.record

    def failing(*arguments: Any) -> None:
        if arguments[-1] == promote.ACCEPTED:
            raise MlflowException("the connection was lost")
        real(*arguments)

    monkeypatch.setattr(promote, "record", failing)
    decision = promote_arm(sweep, GOOD)
    assert decision.promoted
    assert champion() == 1
    assert told(1)[0] == "pending"  # which says no more than is known
    said = capsys.readouterr().err
    assert "became champion: every rule held against sft. But MLflow did not record it" in said


def by_hand(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let somebody move `champion` in MLflow's UI while the promotions that come are at work."""
    real = Registry.move_champion

    def late(self: Registry, to: int, *, instead_of: int | None) -> None:
        self.client.set_registered_model_alias(self.model, "champion", str(number))
        real(self, to, instead_of=instead_of)

    monkeypatch.setattr(_registry.Registry, "move_champion", late)


def test_a_champion_that_changed_meanwhile_is_not_replaced(
    sweep: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert promote_arm(sweep, GOOD).promoted
    assert not promote_arm(change(sweep, seeds=9), SAME).promoted
    by_hand(monkeypatch, 2)
    decision = promote_arm(sweep, BETTER)
    assert failed(decision) == {"same_champion"}
    assert "changed meanwhile (now: version 2)" in decision.rules[-1].reason
    assert told(3)[:2] == ("refused", "refused")
    assert registry().holder("challenger").number == 3  # type: ignore[union-attr]


def test_one_that_was_made_champion_by_hand_meanwhile_is_not_called_refused(
    sweep: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert promote_arm(sweep, GOOD).promoted
    by_hand(monkeypatch, 2)
    assert promote_arm(sweep, BETTER).promoted
    assert told(2)[0] == "accepted"
    assert registry().holder("challenger") is None
    assert roll_back(sweep).version == 1
