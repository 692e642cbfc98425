"""What both workers share: the job they are given, one clock, one reading of peak memory.

Only torch and the standard library: TRL's worker runs in an environment without betaflow.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

GIB = 2**30
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}  # a job's, as betaflow calls them


def read_job() -> dict[str, Any]:
    """Read the job file that the command line names, and set the threads it asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    job: dict[str, Any] = json.loads(parser.parse_args().job.read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    if job["device"] == "cuda" and not torch.cuda.is_available():
        sys.exit(f"--device cuda, but the torch of {sys.executable} sees no GPU")
    return job


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def now() -> float:
    """Seconds on a monotonic clock, once the GPU has finished what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def stamp() -> tuple[float, float]:
    """Seconds on the clock and of this process's processors.

    Where the two differ (by more than the threads), others were using the machine.
    """
    return now(), time.process_time()


def between(stamps: list[tuple[float, float]]) -> dict[str, list[float]]:
    """Seconds from each stamp to the next, by either measure."""
    pairs = list(itertools.pairwise(stamps))
    return {
        "step_seconds": [end[0] - start[0] for start, end in pairs],
        "step_cpu_seconds": [end[1] - start[1] for start, end in pairs],
    }


def peak_bytes() -> int:
    """Peak memory so far: CUDA's allocations, or this process's resident set on a CPU.

    `VmHWM` starts at zero with the program; `getrusage` would carry over the parent's peak.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def resident_bytes() -> int:
    """Memory of this process now, in the units of `peak_bytes`."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _status("VmRSS")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}: this benchmark needs Linux")


def device_name() -> str:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def versions(*packages: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}


def progress(label: str, step: int, steps: int, seconds: float, loss: float | None) -> None:
    """One line on stderr for an optimizer step."""
    shown = "" if loss is None else f", loss {loss:.6f}"
    print(f"{label}: step {step}/{steps}, {seconds:.3f} s{shown}", file=sys.stderr, flush=True)
