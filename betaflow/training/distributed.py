"""One process or many: what the loop and its checkpoints need of `torch.distributed`.

With no process group every function here is that of a single process and costs nothing. With one
(torchrun), these are collective calls: every rank must make them, in the same order. A group's
timeout must allow for rank 0 reading a whole checkpoint to verify it (about 1 GB a second) while
the others wait.

FSDP2 averages gradients over ranks. Where a loss is already divided by the whole batch they must
be summed: `module.set_gradient_divide_factor(1.0)` on each module that `fully_shard` was called
on, and with gloo `module.set_force_sum_reduction_for_comms(True)` too (gloo can't multiply within
a reduction, which is how FSDP2 divides otherwise).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import distributed


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if _together() else 0


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _together() else 1


def is_main() -> bool:
    """Whether this process is the one that writes, prints and decides."""
    return rank() == 0


def any_rank(flag: bool) -> bool:
    """Whether any rank's flag is set; every rank hears the same."""
    if not _together():
        return flag
    value = torch.tensor(int(flag), device=_device())
    distributed.all_reduce(value, distributed.ReduceOp.MAX)
    return bool(value)


def broadcast(value: int) -> int:
    """Rank 0's whole number, on every rank."""
    if not _together():
        return value
    sent = torch.tensor(value, device=_device())
    distributed.broadcast(sent, src=0)
    return int(sent)


def from_main(flag: bool) -> bool:
    """Rank 0's decision, on every rank."""
    return bool(broadcast(int(flag)))


def every_rank(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Each rank's tensor, on the CPU, in order of rank; all have one shape and type."""
    if not _together():
        return [tensor.cpu()]
    ours = tensor.to(_device())
    found = [torch.empty_like(ours) for _ in range(world())]
    distributed.all_gather(found, ours)
    return [one.cpu() for one in found]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor, gathered by all ranks; any other tensor itself."""
    if not _together():
        return tensor
    from torch.distributed.tensor import DTensor  # slow to import, and needed by many ranks alone

    return cast("torch.Tensor", tensor.full_tensor()) if isinstance(tensor, DTensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor; any other tensor itself."""
    found: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


def like(full: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This rank's part of `full`, which every rank holds, sharded as `parameter` is.

    Returns `full` itself where the parameter is not sharded. Needs no communication.
    """
    if not _together():
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor):
        return full
    return cast(
        "torch.Tensor",
        distribute_tensor(
            full.to(parameter.device),
            parameter.device_mesh,
            parameter.placements,
            src_data_rank=None,
        ),
    )


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _device() -> torch.device:
    """Where a tensor must lie to be sent: NCCL takes none on the CPU."""
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
