"""DPO throughput: the same pairs, in the same order, through betaflow and through TRL.

    .venv/bin/python benchmarks/dpo_throughput.py --model DIR --pairs FILE \\
        --batch-size 8 --steps 20 --precision fp32 --threads 1

Each side in a process of its own, one after the other: betaflow; TRL's DPOTrainer at its best
settings, the batch in one pass; on a CPU the same tuned, one pair a pass; TRL at its defaults.
The weights, tokens, order, batch size, AdamW's hyper-parameters and the (constant) rate are the
same, and dropout is off. Pairs of which a side has more than --max-length tokens are left out and
counted, so that nothing is truncated. A difference in tokens stops the run; the largest
difference in loss is reported.

TRL lives in an environment of its own, which --trl-python names. To make the default one:

    python -m venv .venv-trl && .venv-trl/bin/pip install \\
        trl==1.16.0 'transformers>=5.19,<5.20' torch==2.13.0

--no-trl measures betaflow alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _figures import WARM_UP, against, figures, model_flops, show
from _pairs import read_pairs

from betaflow.data.tokenise import encode
from betaflow.errors import UserError
from betaflow.policy.loading import load_tokenizer
from betaflow.training import loop

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CHOICES = ("chosen", "rejected")
SIDES = ("betaflow", "trl best", "trl tuned", "trl defaults")

Pairs = list[dict[str, Any]]


def main() -> None:
    given = arguments()
    sides = SIDES[:1] if given.no_trl else [side for side in SIDES if side in given.sides]
    if not given.no_trl:
        require_trl(given.trl_python)
    pairs, counts = usable_pairs(given)
    order = [
        index
        for step in range(given.steps)
        for index in loop.batch_indices(len(pairs), given.batch_size, given.seed, step)
    ]
    say(", ".join(f"{value} {key}" for key, value in counts.items()))
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for repeat in range(given.repeats):
        for side in sides:
            say(f"--- {side}, repeat {repeat + 1} of {given.repeats}")
            runs[side].append(run_side(side, given, pairs, order))
    table, tokens = reckon(given, runs, [pairs[i] for i in order])
    heading(given, counts, tokens)
    show(table)
    if given.json:
        record = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "command": {key: str(value) for key, value in vars(given).items()},
            "pairs": counts,
            "tokens": tokens,
            "table": table,
            "runs": runs,
        }
        given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def reckon(
    given: argparse.Namespace, runs: dict[str, list[dict[str, Any]]], ordered: Pairs
) -> tuple[dict[str, dict[str, Any]], list[int]]:
    """Every side's figures, and the real tokens of each step."""
    size = given.batch_size
    tokens = [
        sum(real_tokens(pair) for pair in ordered[start : start + size])
        for start in range(0, len(ordered), size)
    ]
    shape = json.loads((given.model / "config.json").read_text(encoding="utf-8"))
    lengths = [n for pair in ordered[WARM_UP * size :] for n in sequence_lengths(pair)]
    work = model_flops(shape, runs["betaflow"][0]["parameters"], lengths)
    table = {side: figures(found, tokens, work) for side, found in runs.items()}
    for side in list(runs)[1:]:
        table[side] |= against(table[side], runs[side], table["betaflow"], runs["betaflow"])
    return table, tokens


def heading(given: argparse.Namespace, counts: dict[str, int], tokens: list[int]) -> None:
    print(
        f"\n{given.model}: batch {given.batch_size}, {given.steps} steps "
        f"({WARM_UP} of them warm-up), {given.precision} (TRL defaults: bf16), {given.device}, "
        f"{given.threads} thread(s), repeats {given.repeats}\n"
        f"{', '.join(f'{value} {key}' for key, value in counts.items())}; "
        f"{sum(tokens) / len(tokens):,.0f} real tokens a step\n"
    )


def usable_pairs(given: argparse.Namespace) -> tuple[Pairs, dict[str, int]]:
    """The first steps x batch-size pairs that fit, with their tokens; and what was left out.

    A pair whose two sides split from the prompt at different tokens is left out too: TRL splits
    both sides where the shorter prompt ends, betaflow each where its own does.
    """
    tokenizer = load_tokenizer(given.model)
    texts, unusable = read_pairs(given.pairs)
    needed = given.steps * given.batch_size
    pairs: Pairs = []
    counts = {"pairs used": 0, "too long": 0, "split apart": 0, "not a pair": unusable}
    for text in texts:
        chosen, rejected = (encode(tokenizer, text["prompt"], text[s]) for s in CHOICES)
        if max(chosen.length, rejected.length) > given.max_length:
            counts["too long"] += 1
        elif chosen.prompt != rejected.prompt:
            counts["split apart"] += 1
        else:
            ids = (chosen.prompt, chosen.completion, rejected.completion)
            names = ("prompt_ids", "chosen_ids", "rejected_ids")
            pairs.append({**text, **dict(zip(names, ids, strict=True))})
        if len(pairs) == needed:
            break
    counts["pairs used"] = len(pairs)
    if len(pairs) < needed:
        raise UserError(
            f"{given.pairs} has {len(pairs)} pairs of at most {given.max_length} tokens a side; "
            f"{given.steps} steps of {given.batch_size} need {needed}: lower --steps"
        )
    return pairs, counts


def sequence_lengths(pair: dict[str, Any]) -> tuple[int, int]:
    """Tokens of prompt + chosen and of prompt + rejected."""
    prompt = len(pair["prompt_ids"])
    return prompt + len(pair["chosen_ids"]), prompt + len(pair["rejected_ids"])


def real_tokens(pair: dict[str, Any]) -> int:
    """Tokens of both sequences: what a trainer that shares nothing and pads nothing reads."""
    return sum(sequence_lengths(pair))


def run_side(
    side: str, given: argparse.Namespace, pairs: Pairs, order: list[int]
) -> dict[str, Any]:
    """Train one side in a process of its own, in an empty folder, and return what it measured."""
    with tempfile.TemporaryDirectory(prefix="betaflow-benchmark-") as name:
        folder = Path(name)
        write_jsonl(folder / "pairs.jsonl", pairs)
        write_jsonl(folder / "ordered.jsonl", [pairs[i] for i in order])
        job = {
            **{key: getattr(given, key) for key in JOB_KEYS},
            "side": side.removeprefix("trl "),
            "model": str(given.model.resolve()),
            "pairs": str(folder / "pairs.jsonl"),
            "ordered": str(folder / "ordered.jsonl"),
            "out": str(folder / "result.json"),
            "trl_set": dict(given.trl_set),
            "betaflow_set": dict(given.betaflow_set),
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        script = HERE / ("betaflow_dpo.py" if side == "betaflow" else "trl_dpo.py")
        python = sys.executable if side == "betaflow" else os.path.abspath(given.trl_python)
        ended = subprocess.run(
            [python, str(script), str(folder / "job.json")],
            cwd=folder,
            env=environment(given, folder),
            stdout=sys.stderr,
        )
        if ended.returncode:
            how = f"exit status {ended.returncode}"
            if ended.returncode == -9:
                how = "killed, which is what happens when memory runs out"
            sys.exit(f"error: {side} failed ({how}); what it said is above")
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))


JOB_KEYS = (
    *("batch_size", "steps", "precision", "device", "threads", "beta", "learning_rate"),
    *("max_grad_norm", "max_length", "seed"),
)


def environment(given: argparse.Namespace, folder: Path) -> dict[str, str]:
    """The workers' environment: the same threads, no network, caches of their own."""
    threads = str(given.threads)
    changed = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HOME": str(folder / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TQDM_DISABLE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    if given.device == "cpu":
        changed["CUDA_VISIBLE_DEVICES"] = ""
    return {**os.environ, **changed}


def write_jsonl(path: Path, rows: Pairs) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def machine() -> dict[str, Any]:
    """What ran it: processor, kernel, and the commit of the code."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    return {
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "commit": commit,
    }


def require_trl(python: Path) -> None:
    if not python.is_file():
        raise UserError(
            f"there is no {python}. Make TRL's environment with\n"
            "  python -m venv .venv-trl && .venv-trl/bin/pip install trl==1.16.0 "
            "'transformers>=5.19,<5.20' torch==2.13.0\n"
            "or name another with --trl-python, or measure betaflow alone with --no-trl."
        )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def setting(text: str) -> tuple[str, Any]:
    """Parse NAME=JSON."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=JSON") from None


def add_settings(parser: argparse.ArgumentParser, **fields: str) -> None:
    """Add `--SIDE-set NAME=JSON` for each side; `fields` says whose settings those are."""
    for side, whose in fields.items():
        parser.add_argument(
            f"--{side}-set",
            type=setting,
            action="append",
            default=[],
            metavar="NAME=JSON",
            help=f"a setting ({whose}), to see whether another is faster",
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of the model and its tokenizer")
    add("--pairs", type=Path, required=True, help="pairs or HH transcripts: .jsonl, .jsonl.gz")
    add("--batch-size", type=int, required=True, help="pairs an optimizer step")
    add("--steps", type=int, required=True, help=f"optimizer steps, {WARM_UP} of them warm-up")
    add("--precision", choices=("bf16", "fp32"), default="fp32")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--beta", type=float, default=0.1)
    add("--learning-rate", type=float, default=1e-5)
    add("--max-length", type=int, default=512, help="tokens of a prompt and its completion")
    add("--repeats", type=int, default=1, help="runs of every side, in turns; medians are shown")
    add("--trl-python", type=Path, default=ROOT / ".venv-trl/bin/python")
    add("--no-trl", action="store_true", help="measure betaflow alone")
    add("--sides", nargs="+", choices=SIDES, help="measure these alone, betaflow among them")
    add_settings(
        parser,
        trl="DPOConfig's, for the sides `trl best` and `trl tuned`",
        betaflow="DPOTraining's",
    )
    add("--json", type=Path, help="write everything to this file")
    parser.set_defaults(seed=0, max_grad_norm=1.0)
    given = parser.parse_args()
    if given.sides is None:  # on a GPU larger passes are the faster ones
        given.sides = [side for side in SIDES if given.device == "cpu" or side != "trl tuned"]
    if "betaflow" not in given.sides:
        parser.error("--sides must name betaflow: the others are compared with it")
    if given.steps <= WARM_UP:
        parser.error(f"--steps must be more than the {WARM_UP} of the warm-up")
    if given.batch_size < 1 or given.threads < 1 or given.repeats < 1:
        parser.error("--batch-size, --threads and --repeats must be at least 1")
    return given


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
