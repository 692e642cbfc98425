"""PPO throughput: seconds for 1,000 episodes with betaflow and with TRL's PPOTrainer.

    .venv/bin/python -m benchmarks.ppo_throughput --trl-python .venv-trl-ppo/bin/python

Both train the same weights with the same reward model, on the same prompts in the same order: as
many episodes, epochs and optimizer steps, in one precision (bf16: autocast over float32 weights,
where each library puts it), with as many threads. Each side is in a process of its own, in turns;
every other repeat goes through the sides backwards. The first rollout, and loading, are not
counted. The run stops unless the two did the same work: optimizer steps, first prompts, KL 0 and
equal scores at the start, lengths of the completions.

Without --model there are two cases: `random`, a model of random weights whose completions never
end (prompts of --pairs), and `sft`, this workspace's own out/sft, out/reward and prompts, where
they are.

TRL removed PPO after 1.12.0, so it has an environment of its own, which --trl-python names:

    python -m venv .venv-trl-ppo && .venv-trl-ppo/bin/pip install \\
        trl==1.12.0 'transformers>=5.19,<5.20' torch==2.13.0

--no-trl measures betaflow alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for `python -m`
from _figures import show
from _pairs import read_pairs
from dpo_throughput import add_settings, environment, machine, say, write_jsonl
from ppo_figures import ROWS, WARM_UP, against, figures, require_same_work, rescore
from ppo_models import make_models

from betaflow.data.files import read_jsonl_rows
from betaflow.data.tokenise import encode_prompt
from betaflow.errors import UserError
from betaflow.policy.loading import load_tokenizer
from betaflow.training import loop

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OUT = ROOT / "out"
SIDES = ("betaflow", "trl micro", "trl whole", "trl defaults")

Runs = dict[str, list[dict[str, Any]]]


class Case(NamedTuple):
    """What is trained: folders of the policy and the reward model, and prompts' token ids."""

    name: str
    model: Path
    reward: Path
    prompts: list[list[int]]


def main() -> None:
    given = arguments()
    require_trl(given)
    record: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "command": {key: str(value) for key, value in vars(given).items()},
        "cases": {},
    }
    with tempfile.TemporaryDirectory(prefix="betaflow-benchmark-") as made:
        for case in cases(given, Path(made)):
            runs = run_case(case, given)
            table = {side: figures(found) for side, found in runs.items()}
            for side in list(runs)[1:]:
                table[side] |= against(table[side], table["betaflow"])
            heading(case, given)
            show(table, ROWS)
            best(table)
            record["cases"][case.name] = {"table": table, "runs": runs}
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def cases(given: argparse.Namespace, made: Path) -> list[Case]:
    """What the command line asks for; a random model is made below `made`."""
    if given.model:
        return [case("given", given.model, given.reward, read_prompts(given.prompts), given)]
    found = []
    if "random" in given.cases:
        policy, reward = make_models(given.pairs, made, given.vocabulary)
        texts = [pair["prompt"] for pair in read_pairs(given.pairs)[0]]
        found.append(case("random", policy, reward, texts, given))
    if "sft" in given.cases:
        names = (OUT / "sft", OUT / "reward", OUT / "data/prompts_train.jsonl")
        missing = [str(path) for path in names if not path.exists()]
        if missing:
            say(f"case sft is left out: there is no {', '.join(missing)}; run `make align`")
        else:
            found.append(case("sft", names[0], names[1], read_prompts(names[2]), given))
    return found


def case(name: str, model: Path, reward: Path, texts: list[str], given: argparse.Namespace) -> Case:
    """Encode prompts; those that are too long are left out and counted."""
    tokenizer = load_tokenizer(model)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UserError(f"{model}: pad is EOS, by which TRL tells a completion's end: they differ")
    encoded = [encode_prompt(tokenizer, text) for text in texts]
    kept = [ids for ids in encoded if 0 < len(ids) <= given.max_prompt_tokens]
    if not kept:
        raise UserError(f"case {name} has no prompt of at most {given.max_prompt_tokens} tokens")
    say(f"case {name}: {len(kept)} prompts, {len(encoded) - len(kept)} too long and left out")
    return Case(name, model.resolve(), reward.resolve(), kept)


def read_prompts(path: Path) -> list[str]:
    return [str(row["prompt"]) for _, row in read_jsonl_rows(path)]


def run_case(case: Case, given: argparse.Namespace) -> Runs:
    """Every side, in turns; each is checked against betaflow's run of the same repeat."""
    sides = SIDES[:1] if given.no_trl else [side for side in SIDES if side in given.sides]
    tokenizer = load_tokenizer(case.model)
    steps = given.rollouts * given.epochs * given.minibatches
    runs: Runs = {side: [] for side in sides}
    for repeat in range(given.repeats):
        for side in sides if repeat % 2 == 0 else reversed(sides):
            say(f"--- {case.name}: {side}, repeat {repeat + 1} of {given.repeats}")
            result = run_side(side, case, given)
            rescore(
                result,
                case.reward,
                tokenizer.pad_token_id,
                given.missing_eos_penalty,
                tokenizer.eos_token_id,
            )
            runs[side].append(result)
        for side in sides:
            require_same_work(side, runs[side][-1], runs["betaflow"][-1], steps, given.precision)
        for side in sides:
            del runs[side][-1]["first_prompts"]
    return runs


def run_side(side: str, case: Case, given: argparse.Namespace) -> dict[str, Any]:
    """Train one side in a process of its own, in an empty folder, and return what it measured."""
    with tempfile.TemporaryDirectory(prefix="betaflow-benchmark-") as name:
        folder = Path(name)
        count = len(case.prompts)
        order = [
            index
            for step in range(given.rollouts)
            for index in loop.batch_indices(count, given.batch_size, given.seed, step)
        ]
        write_jsonl(folder / "prompts.jsonl", [{"ids": ids} for ids in case.prompts])
        write_jsonl(folder / "ordered.jsonl", [{"ids": case.prompts[i]} for i in order])
        job = {
            **{key: getattr(given, key) for key in JOB_KEYS},
            "side": side.removeprefix("trl "),
            "model": str(case.model),
            "reward": str(case.reward),
            "prompts": str(folder / "prompts.jsonl"),
            "ordered": str(folder / "ordered.jsonl"),
            "out": str(folder / "result.json"),
            "trl_set": dict(given.trl_set),
            "betaflow_set": dict(given.betaflow_set),
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        script = HERE / ("betaflow_ppo.py" if side == "betaflow" else "trl_ppo.py")
        python = sys.executable if side == "betaflow" else os.path.abspath(given.trl_python)
        ended = subprocess.run(
            [python, str(script), str(folder / "job.json")],
            cwd=folder,
            env=environment(given, folder) | {"TRL_EXPERIMENTAL_SILENCE": "1"},
            stdout=sys.stderr,
        )
        if ended.returncode:
            sys.exit(f"error: {side} failed (exit status {ended.returncode}); see above")
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return result


JOB_KEYS = (
    *("batch_size", "micro_batch_size", "rollouts", "epochs", "minibatches", "max_new_tokens"),
    *("missing_eos_penalty", "kl_coefficient", "learning_rate", "precision", "device", "threads"),
    "seed",
)


def heading(case: Case, given: argparse.Namespace) -> None:
    print(
        f"\n{case.name}: {given.rollouts} rollouts ({WARM_UP} of them warm-up) of "
        f"{given.batch_size} episodes of at most {given.max_new_tokens} tokens, {given.epochs} "
        f"epochs of {given.minibatches} mini-batches, {given.precision}, "
        f"{given.threads} thread(s), repeats {given.repeats}\n"
    )


def best(table: dict[str, dict[str, Any]]) -> None:
    """Name TRL's fastest side."""
    ours, *theirs = table
    if theirs:
        side = min(theirs, key=lambda name: table[name]["seconds"])
        row = table[side]
        print(
            f"\nTRL's fastest here is `{side}`: {row['ratio']:.2f} times {ours}'s seconds "
            f"(median; from {row['ratio_least']:.2f} to {row['ratio_most']:.2f})"
        )


def require_trl(given: argparse.Namespace) -> None:
    """Stop before anything runs if TRL is not there, or is one without PPO."""
    if given.no_trl:
        return
    how = (
        "Make TRL's environment with\n"
        "  python -m venv .venv-trl-ppo && .venv-trl-ppo/bin/pip install trl==1.12.0 "
        "'transformers>=5.19,<5.20' torch==2.13.0\n"
        "or name another with --trl-python, or measure betaflow alone with --no-trl."
    )
    if not given.trl_python.is_file():
        raise UserError(f"there is no {given.trl_python}. {how}")
    if subprocess.run([os.path.abspath(given.trl_python), "-c", FIND_PPO]).returncode:
        raise UserError(f"{given.trl_python} has no TRL with PPO: 1.12.0 is the last. {how}")


FIND_PPO = """
import importlib.util, pathlib, sys
trl = importlib.util.find_spec("trl")
sys.exit(not trl or not (pathlib.Path(trl.origin).parent / "experimental/ppo").is_dir())
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cases", nargs="+", choices=("random", "sft"), default=["random", "sft"])
    add("--pairs", type=Path, default=ROOT.parent / "shared/data/hh-harmless.jsonl.gz",
        help="text of the random model's tokenizer, and its prompts")  # fmt: skip
    add("--vocabulary", type=int, default=4096, help="of the random model's projection")
    add("--model", type=Path, help="policy and tokenizer, instead of the two cases")
    add("--reward", type=Path, help="with --model: folder of the reward model")
    add("--prompts", type=Path, help="with --model: .jsonl, a `prompt` a row")
    add("--rollouts", type=int, default=5, help=f"iterations, {WARM_UP} of them warm-up")
    add("--batch-size", type=int, default=96, help="episodes a rollout, a multiple of 8")
    add("--micro-batch-size", type=int, default=24, help="episodes a pass (betaflow, trl micro)")
    add("--epochs", type=int, default=2, help="passes over each rollout")
    add("--minibatches", type=int, default=1, help="optimizer steps an epoch")
    add("--max-new-tokens", type=int, default=64)
    add("--max-prompt-tokens", type=int, default=64)
    add("--learning-rate", type=float, default=3e-6)
    add("--precision", choices=("bf16", "fp32"), default="fp32")
    add("--threads", type=int, default=2)
    add("--repeats", type=int, default=3, help="runs of every side, in turns")
    add("--trl-python", type=Path, default=ROOT / ".venv-trl-ppo/bin/python")
    add("--no-trl", action="store_true", help="measure betaflow alone")
    add("--sides", nargs="+", choices=SIDES, default=SIDES, help="betaflow among them")
    add_settings(
        parser,
        trl="PPOConfig's, for the sides `trl micro` and `trl whole`",
        betaflow="PPOTraining's",
    )
    add("--json", type=Path, help="write everything to this file")
    parser.set_defaults(device="cpu", seed=0, missing_eos_penalty=1.0, kl_coefficient=0.05)
    given = parser.parse_args()
    if "betaflow" not in given.sides:
        parser.error("--sides must name betaflow: the others are compared with it")
    if given.model and not (given.reward and given.prompts):
        parser.error("--model needs --reward and --prompts")
    if given.rollouts <= WARM_UP:
        parser.error(f"--rollouts must be more than the {WARM_UP} of the warm-up")
    if given.batch_size < 2:
        parser.error("--batch-size must be at least 2: lengths are compared by their spread")
    counts = ("micro_batch_size", "epochs", "minibatches", "threads", "repeats")
    if any(getattr(given, name) < 1 for name in counts):
        parser.error("sizes and counts must be at least 1")
    if given.batch_size % given.minibatches:
        parser.error("--batch-size must be a multiple of --minibatches: TRL's mini-batches are")
    return given


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
