"""Stage `benchmark`: lm-eval results of one arm, with standard errors -> out/benchmark."""

from __future__ import annotations

import tempfile
from pathlib import Path

from betaflow.config import load_params
from betaflow.data.tokenise import Limits
from betaflow.io import LOCAL, read_jsonl, write_json
from betaflow.sampling.engine import open_engine
from betaflow.sampling.parity import check_engine
from tasks._arguments import model_argument
from tasks._inputs import encode_pairs
from tasks._main import run, set_threads


def main() -> None:
    """Load the arm's model into the engine, check it against Hugging Face, run the tasks."""
    params = load_params()
    arm = model_argument(__doc__, params)
    name, folder, settings = arm.name, str(arm.model_dir), params.benchmark
    if not settings.tasks:
        write_json(
            f"out/benchmark/{name}.json", {"arm": name, "engine": settings.engine, "results": {}}
        )
        print(f"{name}: benchmark.tasks lists none")
        return
    trust = params.model.trust_remote_code
    set_threads(settings.threads)
    (LOCAL / "tmp").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=LOCAL / "tmp") as cache:
        engine = open_engine(
            settings.engine,
            folder,
            threads=settings.threads,
            precision=params.model.precision,
            batch_size=settings.batch_size,
            trust_remote_code=trust,
        )
        chosen, _ = encode_pairs(
            engine.tokenizer, read_jsonl("out/pairs/eval.jsonl")[:16], Limits.of(params.pairs)
        )
        check_engine(
            engine, folder, chosen, tolerance=settings.logprob_tolerance, trust_remote_code=trust
        )
        from betaflow.evaluation.harness import run_harness

        results = run_harness(engine, settings.tasks, limit=settings.limit, cache=Path(cache))
    write_json(f"out/benchmark/{name}.json", {"arm": name, "engine": settings.engine, **results})
    for task, values in results["results"].items():
        shown = (f"{key} {value:.4g}" for key, value in values.items() if "stderr" not in key)
        print(f"{name}: {task}: {', '.join(shown)}")


if __name__ == "__main__":
    run(main)
