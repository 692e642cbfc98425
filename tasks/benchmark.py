"""Stage `benchmark`: lm-eval results of one arm, with standard errors -> out/benchmark."""

from __future__ import annotations

import tempfile
from pathlib import Path

from betaflow.config import arms, load_params
from betaflow.errors import UserError
from betaflow.io import LOCAL, write_json
from betaflow.sampling.engine import Engine, open_engine
from tasks._arguments import arm_name
from tasks._main import run, set_threads


def main() -> None:
    """Load the arm's model into the engine, check it against Hugging Face, run the tasks."""
    params = load_params()
    name = arm_name(__doc__)
    found = [arm for arm in arms(params) if arm.name == name]
    if not found:
        raise UserError(f"no arm {name!r} in the sweep; see dpo.grid and ppo.grid in params.yaml")
    folder, settings = str(found[0].model_dir), params.benchmark
    trust = params.model.trust_remote_code
    set_threads(settings.threads)
    (LOCAL / "tmp").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=LOCAL / "tmp") as cache:
        engine = open_engine(
            settings.engine,
            folder,
            threads=settings.threads,
            batch_size=settings.batch_size,
            trust_remote_code=trust,
        )
        _check(engine, folder, params.sample.logprob_tolerance, trust)
        from betaflow.evaluation.harness import run_harness

        results = run_harness(engine, settings.tasks, limit=settings.limit, cache=Path(cache))
    write_json(f"out/benchmark/{name}.json", {"arm": name, "engine": settings.engine, **results})
    for task, values in results["results"].items():
        shown = (f"{key} {value:.4g}" for key, value in values.items() if "stderr" not in key)
        print(f"{name}: {task}: {', '.join(shown)}")


def _check(engine: Engine, folder: str, tolerance: float, trust: bool) -> None:
    """Compare scores of a few held-out pairs with Hugging Face's."""
    from betaflow.io import read_jsonl
    from betaflow.sampling.hf_engine import HFEngine
    from betaflow.sampling.parity import require_parity
    from tasks._inputs import encode_pairs

    if engine.name == "hf":
        return
    chosen, _ = encode_pairs(engine.tokenizer, read_jsonl("out/pairs/eval.jsonl")[:16])
    pairs = [(s.prompt, s.completion) for s in chosen]
    plain = HFEngine.load(folder, batch_size=16, trust_remote_code=trust)
    require_parity(
        [s.logprob for s in engine.score(pairs)],
        [s.logprob for s in plain.score(pairs)],
        [len(target) for _, target in pairs],
        tolerance=tolerance,
        what=f"{engine.name} on {folder}",
    )


if __name__ == "__main__":
    run(main)
