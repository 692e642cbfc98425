"""Stage `optimum`: many draws of the reference for each prompt of `sample`, scored -> out/optimum.

All are drawn first and then scored, so that engine and reward model need not lie in memory
together; both a few prompts at a time. Each part is written to a file of its own at once: a stage
that was stopped goes on after the last, and ends in the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from betaflow.config import Params, load_params
from betaflow.data.tokenise import Encoded
from betaflow.io import CHECKPOINTS, atomic_file
from betaflow.policy.loading import load_policy, load_reward_model, load_tokenizer
from betaflow.policy.packing import all_sequences
from betaflow.policy.rewards import all_sequence_scores
from betaflow.policy.scorer import Scorer
from betaflow.progress import track
from betaflow.sampling.engine import Request, open_engine
from betaflow.sampling.parity import release, require_parity
from tasks._inputs import held_out_prompts, stage_fingerprint
from tasks._main import run, set_threads

FILE = Path("out/optimum/draws.parquet")
PARTS = CHECKPOINTS / "optimum"
PART = 4096  # draws of a part, or one prompt's where those are more
DRAWN_TOGETHER, SCORED_TOGETHER = 512, 256  # completions a forward pass
LOGPS_TOKENS = 16384  # tokens a forward pass of the log-probabilities
FIRST = 1_000_000  # seed of a prompt's first draw

COLUMNS = {
    "prompt_id": pa.string(),
    "draw": pa.int32(),
    "completion": pa.string(),
    "finish_reason": pa.string(),
    "completion_tokens": pa.int32(),
}
DRAWN = pa.schema({**COLUMNS, "token_ids": pa.list_(pa.int32()), "logprob": pa.float64()})
SCORED = pa.schema({**COLUMNS, "gold_reward": pa.float64(), "reward_model": pa.float64()})

Part = list[dict[str, Any]]  # rows of prompts, with the `index` of each among all


def main() -> None:
    """Draw, score, compare the engine's log-probabilities with Hugging Face's, join, write."""
    params = load_params()
    draws = params.optimum.samples
    if not draws:
        with atomic_file(FILE) as path:
            pq.write_table(SCORED.empty_table(), path)
        return
    set_threads(params.sample.threads)
    parts = _parts(params)
    folder = _folder(params)
    _draw(params, parts, folder)
    _score(params, parts, folder)
    with atomic_file(FILE) as path, pq.ParquetWriter(path, SCORED) as writer:
        for number in range(len(parts)):
            writer.write_table(pq.read_table(_file(folder, "scored", number), schema=SCORED))
    print(f"{draws} draws for each of {sum(map(len, parts))} prompts: {FILE}")


def _parts(params: Params) -> list[Part]:
    """The in-domain prompts of `sample`, as many together as make a part."""
    tokenizer = load_tokenizer("out/sft", trust_remote_code=params.model.trust_remote_code)
    longest = params.pairs.max_prompt_tokens
    found = held_out_prompts(tokenizer, longest, params.sample.prompts)
    rows = [{**row, "index": index} for index, row in enumerate(found)]
    several = max(1, PART // params.optimum.samples)
    return [rows[first : first + several] for first in range(0, len(rows), several)]


def _folder(params: Params) -> Path:
    """Where the parts lie; those of other inputs are removed."""
    settings = {
        "samples": params.optimum.samples,
        "longest": params.pairs.max_prompt_tokens,
        "precision": params.model.precision,
        # Not the tolerance: parts drawn under another are held to the new one when scored.
        **params.sample.model_dump(include={"engine", "prompts", "max_new_tokens", "threads"}),
    }
    folder = PARTS / stage_fingerprint("optimum", settings)
    for other in PARTS.glob("*"):
        if other != folder:
            shutil.rmtree(other)
    return folder


def _file(folder: Path, kind: str, number: int) -> Path:
    return folder / f"{kind}-{number:05d}.parquet"


def _write(table: pa.Table, path: Path) -> None:
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)


def _missing(parts: Sequence[Part], folder: Path, kind: str) -> list[int]:
    return [n for n in range(len(parts)) if not _file(folder, kind, n).is_file()]


def _tracked(parts: Sequence[Part], missing: list[int], draws: int, label: str) -> Iterator[int]:
    """The numbers of the parts that are missing, with progress in draws."""
    total = draws * sum(map(len, parts))
    done = total - draws * sum(len(parts[number]) for number in missing)
    with track(total, label, "draw", start=done) as progress:
        for number in missing:
            yield number
            done += draws * len(parts[number])
            progress.update(done)


def _draw(params: Params, parts: Sequence[Part], folder: Path) -> None:
    """Draw from the reference at T = 1, each draw seeded by its number and its prompt's place."""
    settings, draws = params.sample, range(params.optimum.samples)
    missing = _missing(parts, folder, "drawn")
    if not missing:
        return
    engine = open_engine(
        settings.engine,
        "out/sft",
        threads=settings.threads,
        precision=params.model.precision,
        batch_size=DRAWN_TOGETHER,
        trust_remote_code=params.model.trust_remote_code,
    )
    for number in _tracked(parts, missing, len(draws), "optimum"):
        rows = [(row, draw) for row in parts[number] for draw in draws]
        found = engine.generate(
            [
                Request(
                    row["ids"],
                    1.0,
                    (FIRST + draw) * 1_000_003 + row["index"],
                    settings.max_new_tokens,
                )
                for row, draw in rows
            ]
        )
        columns = {
            "prompt_id": [row["id"] for row, _ in rows],
            "draw": [draw for _, draw in rows],
            "completion": [one.text for one in found],
            "finish_reason": [one.finish_reason for one in found],
            "completion_tokens": [len(one.token_ids) for one in found],
            "token_ids": [one.token_ids for one in found],
            "logprob": [one.logprob for one in found],
        }
        _write(pa.table(columns, schema=DRAWN), _file(folder, "drawn", number))
    release(engine)


def _score(params: Params, parts: Sequence[Part], folder: Path) -> None:
    """Add the rewards, and stop if the draws are not of the model that they should be of."""
    missing = _missing(parts, folder, "scored")
    if not missing:
        return
    trust, precision = params.model.trust_remote_code, params.model.precision
    tokenizer = load_tokenizer("out/sft", trust_remote_code=trust)
    policy = Scorer(load_policy("out/sft", trust_remote_code=trust).eval(), tokenizer.pad_token_id)
    reward = load_reward_model("out/reward", trust_remote_code=trust).eval()
    for number in _tracked(parts, missing, params.optimum.samples, "optimum-scores"):
        drawn = pq.read_table(_file(folder, "drawn", number))
        prompts = {row["id"]: row for row in parts[number]}
        own = [prompts[name] for name in drawn["prompt_id"].to_pylist()]
        sequences = [
            Encoded(row["ids"], tokens)
            for row, tokens in zip(own, drawn["token_ids"].to_pylist(), strict=True)
        ]
        logps = all_sequences(policy, sequences, budget=LOGPS_TOKENS, precision=precision)
        require_parity(
            drawn["logprob"].to_pylist(),
            logps.tolist(),
            drawn["completion_tokens"].to_pylist(),
            tolerance=params.sample.logprob_tolerance,
            what=f"{params.sample.engine} on out/sft",
        )
        scores = all_sequence_scores(
            reward,
            sequences,
            pad=tokenizer.pad_token_id,
            batch_size=SCORED_TOGETHER,
            precision=precision,
        )
        texts = [
            row["text"] + text
            for row, text in zip(own, drawn["completion"].to_pylist(), strict=True)
        ]
        columns = {name: drawn[name] for name in COLUMNS}
        columns["gold_reward"] = pa.array(_gold_rewards(params, texts), pa.float64())
        columns["reward_model"] = pa.array(scores.tolist(), pa.float64())
        _write(pa.table(columns, schema=SCORED), _file(folder, "scored", number))


def _gold_rewards(params: Params, texts: list[str]) -> list[float]:
    """The exact reward of whole texts; NaN outside the embedded world."""
    if params.data.source != "world":
        return [float("nan")] * len(texts)
    from betaflow.worlds.sentiment import gold_reward

    return [gold_reward(text) for text in texts]


if __name__ == "__main__":
    run(main)
