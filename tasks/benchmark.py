"""Stage `benchmark`: lm-eval results of one arm, with standard errors -> out/benchmark."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from betaflow.config import Params, load_params
from betaflow.io import LOCAL, read_jsonl, write_json
from tasks._arguments import model_argument
from tasks._main import run, set_threads


def main() -> None:
    """Run the tasks on the arm that the command line names; write and tell."""
    params = load_params()
    arm = model_argument(__doc__, params)
    found = benchmark(params, arm.name, arm.model_dir)
    write_json(f"out/benchmark/{arm.name}.json", found)
    tell(found)


def benchmark(params: Params, name: str, folder: str | Path) -> dict[str, Any]:
    """Load the model in `folder` into the engine, check it against Hugging Face, run the tasks."""
    settings, trust = params.benchmark, params.model.trust_remote_code
    about = {"arm": name, "engine": settings.engine}
    if not settings.tasks:
        return about | {"results": {}}
    # Here, since a run without tasks has such a stage for every arm too: torch takes seconds.
    from betaflow.data.tokenise import Limits
    from betaflow.evaluation.harness import run_harness
    from betaflow.sampling.engine import open_engine
    from betaflow.sampling.parity import check_engine
    from tasks._inputs import encode_pairs

    set_threads(settings.threads)
    (LOCAL / "tmp").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=LOCAL / "tmp") as cache:
        engine = open_engine(
            settings.engine,
            str(folder),
            threads=settings.threads,
            precision=params.model.precision,
            batch_size=settings.batch_size,
            trust_remote_code=trust,
        )
        chosen, _ = encode_pairs(
            engine.tokenizer, read_jsonl("out/pairs/eval.jsonl")[:16], Limits.of(params.pairs)
        )
        check_engine(
            engine,
            str(folder),
            chosen,
            tolerance=settings.logprob_tolerance,
            trust_remote_code=trust,
        )
        return about | run_harness(engine, settings.tasks, limit=settings.limit, cache=Path(cache))


def tell(found: dict[str, Any]) -> None:
    """Print a task a line."""
    if not found["results"]:
        print(f"{found['arm']}: benchmark.tasks lists none")
    for task, values in found["results"].items():
        shown = (f"{key} {value:.4g}" for key, value in values.items() if "stderr" not in key)
        print(f"{found['arm']}: {task}: {', '.join(shown)}")


if __name__ == "__main__":
    run(main, parses=True)
