"""lm-eval (Gao et al. 2021) on a betaflow engine."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from betaflow.data.tokenise import encode
from betaflow.errors import UserError
from betaflow.progress import track
from betaflow.sampling.engine import Engine, Request, draw_seed

OWN_TASKS = Path(__file__).parent / "lm_eval_tasks"
CHUNK = 256
# What leaves a draw, or greedy text, at the temperature's: the engines know no other option.
PLAIN: dict[str, tuple[float, ...]] = {
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "typical_p": (1,),
    "num_beams": (1,),
    "repetition_penalty": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
}
OF_GREEDY = ("num_beams", "repetition_penalty", "frequency_penalty", "presence_penalty")
WHOLE_CORPUS = ("word_perplexity", "byte_perplexity", "bits_per_byte")  # of all documents at once
PERPLEXITY = "perplexity"  # of a mean over documents of log-likelihoods, which is what rows have


def run_harness(
    engine: Engine, tasks: list[str], *, limit: int | None, cache: Path
) -> dict[str, Any]:
    """Run lm-eval tasks, this repository's own (no network) or the harness's, by name.

    Args:
        cache: an empty folder for the datasets library, so that no stale copy is read.

    Returns:
        `{"results": {task: {metric: value, metric_stderr: value}}, "n_samples": {task: n},
        "higher_is_better": {task: {metric: bool}}, "documents": {task: {"hash": hash,
        "results": {metric: [value]}}}}`. A metric without a standard error has none. `documents`
        has every document's own results, which `alignment_tax.task_differences` pairs: numbers, or
        [log-likelihood, weight] for `PERPLEXITY` (a weight of 1) and the metrics of `WHOLE_CORPUS`,
        in the order of the documents; `hash` is the same for the same documents. A metric that is
        not a number of every document, such as F1, is not among them. Where some documents have the
        same `prompt`, `documents[task]` has `clusters`, a label a document, too.
    """
    os.environ["HF_DATASETS_CACHE"] = str(cache)  # read when `datasets` is imported
    import lm_eval
    from lm_eval.tasks import TaskManager

    own = {path.stem for path in OWN_TASKS.glob("*.yaml")}
    only_own = {task.removeprefix("betaflow_") for task in tasks} <= own
    manager = TaskManager(include_path=str(OWN_TASKS), include_defaults=not only_own)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise UserError(f"lm-eval has no task {', '.join(unknown)}; `lm-eval ls tasks` lists them")
    tags = sorted(set(tasks) & set(manager.all_tags))
    if tags:  # its results would have other names than what was asked for
        raise UserError(
            f"benchmark.tasks: {', '.join(tags)} is a tag of lm-eval, and no task or group; name "
            "the tasks that it stands for: `lm-eval ls tags` lists tags"
        )
    found = lm_eval.simple_evaluate(
        model=_adapter(engine), tasks=tasks, limit=limit, task_manager=manager, bootstrap_iters=1000
    )
    return _tidy(found)


def _tidy(found: Any) -> dict[str, Any]:
    results: dict[str, dict[str, float]] = {}
    for task, values in found["results"].items():
        kept = results.setdefault(task, {})
        for key, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                kept[_name(key)] = float(value)
        kept.pop("sample_len", None)
        for metric in WHOLE_CORPUS:
            rows = found["samples"].get(task, [])
            if metric in kept and rows and metric in rows[0]:
                kept[f"{metric}_stderr"] = _ratio_error([row[metric] for row in rows], metric)
    return {
        "results": results,
        "n_samples": {task: n["effective"] for task, n in found["n-samples"].items()},
        "higher_is_better": {task: dict(v) for task, v in found["higher_is_better"].items()},
        "documents": {task: _documents(rows) for task, rows in found["samples"].items()},
    }


def _name(key: str) -> str:
    """Of lm-eval's "acc_stderr,strict", a metric and the filter it was read through."""
    metric, _, how = key.partition(",")
    end = "_stderr" if metric.endswith("_stderr") else ""
    return metric.removesuffix(end) + (f"_{how}" if how not in ("", "none") else "") + end


def _documents(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One task's results by document, from lm-eval's rows: one a document and filter."""
    rows = sorted(rows, key=lambda row: int(row["doc_id"]))
    # Of what was asked and its answer, too: a task's prompt can change with lm-eval's version.
    asked = ("doc_hash", "prompt_hash", "target_hash")
    hashes = {row["doc_id"]: "".join(row[name] for name in asked) for row in rows}
    results: dict[str, list[Any]] = {}
    for row in rows:
        for metric in row["metrics"]:
            name = metric if row["filter"] == "none" else f"{metric}_{row['filter']}"
            value = row[metric]
            if metric == PERPLEXITY:
                results.setdefault(name, []).append([float(value), 1.0])
            elif metric in WHOLE_CORPUS:
                results.setdefault(name, []).append([float(number) for number in value])
            elif isinstance(value, bool | int | float | np.number | np.bool_):
                results.setdefault(name, []).append(float(value))
    joined = hashlib.sha256("".join(hashes.values()).encode())
    whole = {name: values for name, values in results.items() if len(values) == len(hashes)}
    clusters = _clusters(list({row["doc_id"]: row["doc"] for row in rows}.values()))
    return {"hash": joined.hexdigest(), "results": whole, **clusters}


def _clusters(documents: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Documents of one prompt by the number of the prompt, if some are; one of all clusters none.

    A prompt that is the same for every document is an instruction.
    """
    prompts = [document.get("prompt") for document in documents]
    if not all(isinstance(prompt, str) for prompt in prompts):
        return {}
    number = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    if not 1 < len(number) < len(prompts):
        return {}
    return {"clusters": [number[prompt] for prompt in prompts]}


def _ratio_error(rows: list[tuple[float, int]], metric: str) -> float:
    """Standard error of exp(-sum L / sum W), or of bits, by the delta method over documents.

    lm-eval has none for these metrics.
    """
    n, weight = len(rows), sum(w for _, w in rows)
    if n < 2:
        return math.nan
    rate = sum(value for value, _ in rows) / weight
    residual = sum((value - rate * w) ** 2 for value, w in rows) * n / (n - 1)
    error = math.sqrt(residual) / weight
    return error / math.log(2) if metric == "bits_per_byte" else error * math.exp(-rate)


def _adapter(engine: Engine) -> Any:
    """Our engine as lm-eval's `TemplateLM` (which can be imported only where lm-eval is)."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs

    class EngineLM(TemplateLM):
        tokenizer = engine.tokenizer
        tokenizer_name = "betaflow"
        max_gen_toks = 256
        # lm-eval asks for these; there is one process.
        rank, world_size = 0, 1

        @property
        def eot_token_id(self) -> int:
            return int(engine.tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            bos = engine.tokenizer.bos_token_id
            return self.eot_token_id if bos is None else int(bos)

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **_: Any
        ) -> list[int]:
            ids: list[int] = engine.tokenizer(
                string, add_special_tokens=add_special_tokens is not False
            ).input_ids
            return ids

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            pair = encode(engine.tokenizer, context, continuation, finished=False)
            return pair.prompt or [self.prefix_token_id], pair.completion

        def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            pairs = [_fit(context, target, engine.max_length) for _, context, target in requests]
            return _score(engine, pairs)

        def loglikelihood_rolling(
            self, requests: list[Any], disable_tqdm: bool = False
        ) -> list[float]:
            windows, owner = [], []
            for index, request in enumerate(requests):
                ids = self.tok_encode(request.args[0], add_special_tokens=False)
                for window in _windows(ids, self.prefix_token_id, engine.max_length):
                    windows.append(window)
                    owner.append(index)
            totals = [0.0] * len(requests)
            for index, (logprob, _) in zip(owner, _score(engine, windows), strict=True):
                totals[index] += logprob
            return totals

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            drawn, stops, seen = [], [], Counter[str]()
            for request in requests:
                context, given = request.args
                how = {"temperature": 0.0, **normalize_gen_kwargs(given, self.max_gen_toks)}
                ids = self.tok_encode(context) or [self.prefix_token_id]
                ids, budget = _leave_room(ids, how["max_gen_toks"], engine.max_length)
                # One that is asked again (a task's `repeats`) is drawn anew.
                asked = repr((context, sorted(how.items())))
                seed = draw_seed("benchmark", asked, seen[asked])
                seen[asked] += 1
                _require_plain(how, request.task_name)
                drawn.append(Request(ids, how["temperature"], seed, budget))
                stops.append(how["until"])
            texts = [completion.text for completion in engine.generate(drawn)]
            return [_until(text, words) for text, words in zip(texts, stops, strict=True)]

    return EngineLM()


def _score(engine: Engine, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    found: list[tuple[float, bool]] = []
    with track(len(pairs), "lm-eval", "sequence") as progress:
        for start in range(0, len(pairs), CHUNK):
            found += [(s.logprob, s.is_greedy) for s in engine.score(pairs[start : start + CHUNK])]
            progress.update(len(found))
    return found


def _fit(context: list[int], target: list[int], longest: int) -> tuple[list[int], list[int]]:
    """Cut a context from the left so that context and target fit (one token is left to draw)."""
    target = target[-(longest - 2) :]
    return context[-(longest - 1 - len(target)) :], target


def _require_plain(how: Mapping[str, Any], task: str) -> None:
    """Refuse options that the engines do not know, of a draw, or of a search for greedy text.

    Raises:
        UserError: naming the task and the option.
    """
    for option, plain in PLAIN.items():
        value = how.get(option)
        heard = how["temperature"] > 0 or option in OF_GREEDY
        if heard and value is not None and value not in plain:
            raise UserError(
                f"benchmark.tasks: {task} asks for text with {option} {value}, and betaflow draws "
                "by temperature alone; leave the task out"
            )


def _leave_room(context: list[int], budget: int, longest: int) -> tuple[list[int], int]:
    """Cut a context from the left, but the budget first, to no less than half of the positions.

    lm-eval's own adapters cut the context alone, and refuse a budget of all positions.
    """
    budget = min(budget, max(longest - len(context), longest // 2))
    return context[-(longest - budget) :], budget


def _windows(ids: list[int], prefix: int, longest: int) -> list[tuple[list[int], list[int]]]:
    """Disjoint windows over a document, the first after `prefix`, the others after one token."""
    size, found = longest - 2, []
    for start in range(0, len(ids), size):
        before = [prefix] if start == 0 else ids[start - 1 : start]
        found.append((before, ids[start : start + size]))
    return found


def _until(text: str, stops: list[str]) -> str:
    for stop in stops:
        if stop:
            text = text.split(stop)[0]
    return text
