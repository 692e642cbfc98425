"""Several processes for one training stage: torchrun on this machine, or one already started."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

from betaflow.errors import UserError
from betaflow.parent import end_with_parent

PATIENCE = timedelta(minutes=30)  # for rank 0 to verify or write a whole checkpoint


@contextmanager
def processes(count: int) -> Iterator[None]:
    """Inside, this process is one of `count` that train together.

    The first call has torchrun's launcher run the same command once a process, and ends with
    it. Under a torchrun that somebody else started, its number of processes counts.
    """
    if "RANK" not in os.environ:
        if count == 1:
            yield
            return
        _launch(count)
    # Torchrun gives its workers sessions of their own, which a signal to its process group does not
    # reach: left alone when it is killed they would train on.
    end_with_parent(signal.SIGKILL)
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


def _launch(count: int) -> NoReturn:
    """Run this command in `count` processes by torchrun's launcher, and exit as they do."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Processes of one machine talk over the loopback interface, whatever its name resolves to.
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    spec = sys.modules["__main__"].__spec__
    assert spec is not None  # stages are run by `python -m`
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
    )
    code = 0
    try:
        elastic_launch(settings, sys.executable)("-m", spec.name, *sys.argv[1:])
    except ChildFailedError as error:  # what went wrong, the process has said
        failed = error.get_first_failure()[1].exitcode
        code = failed if failed > 0 else 128 - failed
    except SignalException as error:
        code = 128 + error.sigval
    sys.exit(code)
