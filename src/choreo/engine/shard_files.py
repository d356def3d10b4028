"""The sharded tensors of a checkpoint on the disk, by torch.distributed.checkpoint: every rank writes its rows, and
reads its own again, however many ranks there are then; one process reads them whole.

The rest of a state is in a file of its own (`checkpoint`). There a blank tensor, one without data, holds the place of
each that is here, under its keys joined by slashes.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from choreo import parallel
from choreo.engine.sharded import is_sharded

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# What PyTorch's list of tensors is made of. It is a pickle, which may name any code; nothing else is called.
_KNOWN = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        "Metadata",
        "TensorStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("torch", "float32"),
}


def taken_out(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """A state with a blank in place of every sharded tensor, and these by their keys. Without any it stays as it is."""
    found: dict[str, Tensor] = {}

    def blank(name: str, value: Tensor) -> Tensor:
        if not is_sharded(value):
            return value
        found[name] = value
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    blanked = _mapped(state, blank)
    return (blanked, found) if found else (state, {})


def write(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Writes sharded tensors into the new folder `folder`, synced to the disk. All ranks call it together."""
    import torch.distributed.checkpoint as dcp

    with _own_error():
        dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(folder))


def whole(folder: Path, state: Any, device: str | torch.device) -> Any:
    """The state with what `write` wrote in place of its blanks: in several ranks, which call it together, each with its
    rows, on the CPU; in one process whole tensors on `device`. Runs no code from the files."""
    blanks: dict[str, Tensor] = {}

    def note(name: str, value: Tensor) -> Tensor:
        if value.device.type == "meta":
            blanks[name] = value
        return value

    _mapped(state, note)
    if not blanks:
        return state
    mesh = parallel.mesh("cpu") if parallel.active() else None
    found = {name: _room(blank, device, mesh) for name, blank in blanks.items()}
    _read(folder, found)
    return _mapped(state, lambda name, value: found.get(name, value))


def _room(blank: Tensor, device: str | torch.device, mesh: DeviceMesh | None) -> Tensor:
    if mesh is None:
        return torch.empty(blank.shape, dtype=blank.dtype, device=device)
    from torch.distributed.tensor import Shard, empty

    return empty(*blank.shape, dtype=blank.dtype, device_mesh=mesh, placements=[Shard(0)])


def _read(folder: Path, wanted: dict[str, Tensor]) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

    with open(folder / ".metadata", "rb") as file:  # not by PyTorch, which would run what the pickle names
        listed: Metadata = _Unpickler(file).load()

    class Reader(dcp.FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
            listed.storage_meta = StorageMeta(load_id=self.load_id)
            return listed

    with warnings.catch_warnings(), _own_error():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process: that is meant
        dcp.load(wanted, storage_reader=Reader(folder), no_dist=not parallel.active())


@contextmanager
def _own_error() -> Iterator[None]:
    """Raises what a rank raised. PyTorch wraps it in what is no Exception."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as wrapped:
        error, _ = next(iter(wrapped.failures.values()))
        raise error from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("pathlib"):  # where it was written
            return _nowhere
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint has")
        return super().find_class(module, name)


def _nowhere(*parts: str) -> None:
    return None


def _mapped(state: Any, change: Callable[[str, Tensor], Tensor], name: str = "") -> Any:
    """A copy of nested dicts, lists and tuples with `change` made to every tensor, which is told its keys."""
    if isinstance(state, Tensor):
        return change(name, state)
    if isinstance(state, dict):
        return {key: _mapped(value, change, f"{name}/{key}") for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_mapped(value, change, f"{name}/{i}") for i, value in enumerate(state))
    return state
