"""Checkpoints: weights, optimizer, step and metrics, as safetensors and JSON, written whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from betaflow.io import LOCAL, atomic_directory

KEEP = 2


class Progress(NamedTuple):
    """Where a run stands: steps done, seconds spent on them, and a metrics row for each."""

    step: int
    seconds: float
    metrics: list[dict[str, Any]]


def folder(label: str) -> Path:
    """Where the checkpoints of a run lie."""
    return LOCAL / "checkpoints" / label


def save(
    label: str,
    fingerprint: str,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write a checkpoint beside the older ones; keep the newest two."""
    tensors = {
        f"{name}.{key}": parameter.detach().cpu().contiguous()
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
    }
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value).cpu().contiguous()
    with atomic_directory(folder(label) / f"{progress.step:08d}") as temporary:
        save_file(tensors, temporary / "state.safetensors")
        meta = {"fingerprint": fingerprint, **progress._asdict()}
        (temporary / "state.json").write_text(json.dumps(meta), encoding="utf-8")
    for old in sorted(folder(label).glob("[0-9]*"))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def resume(
    label: str,
    fingerprint: str,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
) -> Progress | None:
    """Load the newest whole checkpoint of a run with the same inputs, if there is one.

    Damaged checkpoints and those of other inputs are removed: left there, they would count
    among the newest.
    """
    for path in sorted(folder(label).glob("[0-9]*"), reverse=True):
        try:
            meta = json.loads((path / "state.json").read_text(encoding="utf-8"))
            tensors = load_file(path / "state.safetensors")
            ours = meta.pop("fingerprint") == fingerprint
        except (OSError, ValueError, KeyError, SafetensorError):
            ours = False
        if ours:
            _restore(tensors, modules, optimizer)
            return Progress(**meta)
        shutil.rmtree(path, ignore_errors=True)
    return None


def _restore(
    tensors: dict[str, torch.Tensor],
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
) -> None:
    with torch.no_grad():
        for name, module in modules.items():
            for key, parameter in module.named_parameters():
                parameter.copy_(tensors[f"{name}.{key}"])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, field = key.split(".", 2)
            state.setdefault(int(index), {})[field] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def clear(label: str) -> None:
    """Remove a run's checkpoints once its output stands."""
    shutil.rmtree(folder(label), ignore_errors=True)
