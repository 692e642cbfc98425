"""Several processes for one training stage: torchrun on this machine, or one already started."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from betaflow.errors import UserError

PATIENCE = timedelta(minutes=30)  # for rank 0 to verify or write a whole checkpoint


@contextmanager
def processes(count: int) -> Iterator[None]:
    """Inside, this process is one of `count` that train together.

    The first call starts torchrun in this process's place, which runs the same command once a
    process. Under a torchrun that somebody else started, its number of processes counts.
    """
    if "RANK" not in os.environ:
        if count == 1:
            yield
            return
        _start_torchrun(count)
    _die_with_parent()
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        local, here = int(os.environ["LOCAL_RANK"]), os.environ["LOCAL_WORLD_SIZE"]
        if local >= torch.cuda.device_count():
            raise UserError(
                f"there are {torch.cuda.device_count()} GPUs for {here} processes; set "
                "dpo.training.processes and run.gpus to what there is"
            )
        torch.cuda.set_device(local)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _die_with_parent() -> None:
    """Be killed when torchrun is (Linux): it gives its workers sessions of their own, which a
    signal to its process group does not reach, and left alone they would train on."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _start_torchrun(count: int) -> None:
    # Processes of one machine talk over the loopback interface, whatever its name resolves to.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    spec = sys.modules["__main__"].__spec__
    assert spec is not None  # stages are run by `python -m`
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words += ["--nproc-per-node", str(count), "-m", spec.name, *sys.argv[1:]]
    sys.stdout.flush()
    os.execv(sys.executable, words)
