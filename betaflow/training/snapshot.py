"""One checkpoint's folder: what is in it, how it is written, verified and read.

Tensors lie in safetensors files of about 2 GiB; `state.json` has the size and SHA-256 of each,
and a SHA-256 of itself, so that damage is found before anything is loaded. The optimizer's state
goes by parameter name. With many processes all gather each tensor, rank 0 writes it whole, and on
reading every rank takes its part: the folder says nothing of how the weights were sharded.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from betaflow.errors import UserError
from betaflow.training import distributed

PART_BYTES = 2 * 1024**3
META = "state.json"

# What is wrong with a file that is damaged; any other fault may pass (say, permissions).
GONE = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EIO}

Modules = Mapping[str, nn.Module]


class Damaged(Exception):
    """A checkpoint that is not as it was written, or not of these modules; says in what."""


def gathered(modules: Modules, optimizer: torch.optim.Optimizer) -> Iterator[dict[str, Any]]:
    """All of a checkpoint's tensors on rank 0's CPU, a file's worth at a time.

    Every rank must exhaust it, since all gather each tensor together; a part is emptied when the
    next is asked for, so that memory stays bounded.
    """
    part: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in _tensors(modules, optimizer).items():
        more = tensor.numel() * tensor.element_size()
        if part and size + more > PART_BYTES:
            yield part
            part.clear()
            size = 0
        full = distributed.whole(tensor.detach())
        if distributed.is_main():
            part[name] = full.cpu().contiguous()
            size += more
    yield part


def write(folder: Path, parts: Iterator[dict[str, Any]], about: Mapping[str, Any]) -> None:
    """Write the parts, then `about` with the files' sizes and checksums."""
    files = []
    for number, part in enumerate(parts):
        path = folder / f"{number:05d}.safetensors"
        save_file(part, path)
        size = path.stat().st_size
        files.append({"name": path.name, "bytes": size, "sha256": _file_sha256(path)})
    meta = {**about, "processes": distributed.world(), "files": files}
    sealed = {**meta, "sha256": _sha256(meta)}
    (folder / META).write_text(json.dumps(sealed), encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """What `state.json` says. Raises `Damaged` unless its checksum is right."""
    try:
        with _reading(folder):
            meta = json.loads((folder / META).read_bytes())
    except ValueError:
        raise Damaged(f"{META} is not JSON") from None
    if not isinstance(meta, dict) or meta.pop("sha256", None) != _sha256(meta):
        raise Damaged(f"{META} has another checksum than it says")
    return meta


def verify(folder: Path, meta: Mapping[str, Any], modules: Modules) -> None:
    """Raise `Damaged` unless every file is as it was written and its tensors fit the modules."""
    shapes: dict[str, tuple[int, ...]] = {}
    with _reading(folder):
        for file in meta["files"]:
            path = folder / file["name"]
            size = path.stat().st_size
            if size != file["bytes"]:
                raise Damaged(f"{path.name} has {size} bytes, not {file['bytes']}")
            if _file_sha256(path) != file["sha256"]:
                raise Damaged(f"{path.name} has another checksum than it had")
            shapes |= _shapes(path)
    expected = {name: tuple(parameter.shape) for name, parameter in _named(modules).items()}
    weights = {name: shape for name, shape in _of_kind("model", shapes)}
    for name in sorted(expected.keys() | weights.keys()):
        if weights.get(name) != expected.get(name):
            raise Damaged(f"{name} has shape {weights.get(name)}, not {expected.get(name)}")
    for name, shape in _of_kind("optimizer", shapes):
        if shape not in ((), expected.get(name.rpartition(".")[0])):
            raise Damaged(f"the optimizer's {name} has shape {shape}, not its parameter's")


def restore(
    folder: Path,
    meta: Mapping[str, Any],
    modules: Modules,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Load a verified checkpoint: the weights; with an optimizer also its state, and torch's."""
    named = _named(modules)
    state: dict[str, dict[str, torch.Tensor]] = {}
    for file in meta["files"]:
        with safe_open(folder / file["name"], framework="pt") as tensors, torch.no_grad():
            for key in tensors.keys():  # noqa: SIM118  (it is no dict)
                kind, name = key.split(".", 1)
                if kind == "model":
                    named[name].copy_(distributed.like(tensors.get_tensor(key), named[name]))
                elif kind == "optimizer" and optimizer:
                    name, _, field = name.rpartition(".")
                    # A copy, lest the file be held in memory, and on the disk once removed.
                    full = tensors.get_tensor(key).clone()
                    part = distributed.like(full, named[name]) if full.dim() else full
                    state.setdefault(name, {})[field] = part
                elif kind == "rng" and optimizer and meta["processes"] == distributed.world():
                    _set_random_state(name, tensors.get_tensor(key))
    if optimizer:
        _set_optimizer_state(optimizer, named, state)


def _named(modules: Modules) -> dict[str, nn.Parameter]:
    """The parameters that are trained, each once, by module and parameter name."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, module in modules.items():
        for key, parameter in module.named_parameters():
            if parameter.requires_grad:
                found.setdefault(id(parameter), (f"{name}.{key}", parameter))
    return dict(found.values())


def _tensors(modules: Modules, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors, sharded ones as they are, in the same order on every rank."""
    named = _named(modules)
    tensors: dict[str, torch.Tensor] = {f"model.{name}": p for name, p in named.items()}
    known = {id(parameter) for parameter in named.values()}
    if any(id(parameter) not in known for parameter in optimizer.state):
        raise ValueError("the optimizer trains a parameter of none of the modules")
    for name, parameter in named.items():
        for field, value in sorted(optimizer.state.get(parameter, {}).items()):
            tensors[f"optimizer.{name}.{field}"] = torch.as_tensor(value)
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    for kind, state in states.items():
        for rank, one in enumerate(distributed.every_rank(state)):
            tensors[f"rng.{kind}.{rank}"] = one
    return tensors


def _set_optimizer_state(
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, nn.Parameter],
    state: Mapping[str, dict[str, torch.Tensor]],
) -> None:
    names = {id(parameter): name for name, parameter in named.items()}
    order = [names.get(id(p), "") for group in optimizer.param_groups for p in group["params"]]
    by_index = {index: state[name] for index, name in enumerate(order) if name in state}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": by_index, "param_groups": groups})


def _set_random_state(name: str, state: torch.Tensor) -> None:
    kind, rank = name.split(".")
    if int(rank) != distributed.rank():
        return
    if kind == "cpu":
        torch.set_rng_state(state)
    elif torch.cuda.is_available():
        torch.cuda.set_rng_state(state)


def _of_kind(
    kind: str, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for key, shape in shapes.items():
        if key.startswith(f"{kind}."):
            yield key.removeprefix(f"{kind}."), shape


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as tensors:
            keys = tensors.keys()
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in keys}
    except SafetensorError as error:
        raise Damaged(f"{path.name}: {error}") from error


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in GONE:
            raise Damaged(f"{Path(error.filename or folder).name}: {error.strerror}") from error
        raise UserError(
            f"the checkpoint {folder} can't be read ({error.strerror}); put that right, or delete "
            "it, and run again"
        ) from error


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(meta: Mapping[str, Any]) -> str:
    """Of the JSON with sorted keys, whatever the order in the file."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
