"""Checkpoints that are whole or absent: written to a temporary folder, synced to the disk, then renamed.

What is sharded over ranks is in a folder of its own, to which every rank writes (`shard_files`).
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from choreo import parallel
from choreo.engine import shard_files
from choreo.errors import BadInput, opening
from choreo.files.durable import sync_folder

_FILE, _SHARDS = "state.pt", "shards"
UNFIT = "is no checkpoint of this recipe in this version"


def save(folder: str | Path, state: Mapping[str, Any]) -> None:
    """Writes `state` (nested dicts, lists, numbers, strings and tensors, kept bit for bit) as the new folder `folder`.
    Of several ranks, which have the same state, the first one writes, and the others wait for it; of a tensor that is
    sharded over them each writes its rows.

    Raises FileExistsError where the folder exists. A crash leaves at most a folder whose name starts with ".tmp-".
    """
    folder = Path(folder)
    temporary = folder.parent / f".tmp-{folder.name}"
    plain, sharded = shard_files.taken_out(dict(state))
    parallel.first(lambda: _begin(folder, temporary))
    if sharded:
        shard_files.write(temporary / _SHARDS, sharded)
    parallel.first(lambda: _finish(folder, temporary, plain))


def _begin(folder: Path, temporary: Path) -> None:
    if folder.exists():
        raise FileExistsError(f"{folder} exists already")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()


def _finish(folder: Path, temporary: Path, state: Mapping[str, Any]) -> None:
    if (temporary / _SHARDS).exists():
        sync_folder(temporary / _SHARDS)
    with open(temporary / _FILE, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(temporary)
    os.rename(temporary, folder)
    sync_folder(folder.parent)


def load(folder: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The state that `save` was given, tensors on `device`. Runs no code from the file. In several ranks, which call it
    together, a tensor that was sharded is so again, over those of now, on the CPU.

    Raises BadInput where there is no checkpoint."""
    file = Path(folder) / _FILE
    with opening(file, "no checkpoint can be read from it"):
        try:
            state = torch.load(file, map_location=device, weights_only=True)
        except pickle.UnpicklingError:  # its message advises to run code from the file
            state = None
    if not isinstance(state, dict):
        raise BadInput(f"{file}: is no checkpoint of choreo's")
    with opening(Path(folder) / _SHARDS, "no checkpoint can be read from it"):
        whole: dict[str, Any] = shard_files.whole(Path(folder) / _SHARDS, state, device)
    return whole


def check(where: str | Path, saved: Any, example: Any) -> None:
    """Compares the state of a checkpoint with an example of it. Raises BadInput that names the first difference.

    An example is one of these:
    - a dict: all its keys must be there, with values that fit its own. Other keys are allowed, except in a dict of
      tensors. The one key `str` stands for every key. {} allows anything.
    - [x]: a list of any length whose entries all fit x. [] allows anything.
    - a tuple: a list of exactly these entries; with an ellipsis at its end, more entries of any kind may follow.
    - a tensor: a tensor of the same shape.
    - a number or a text: a value of the same type.
    """
    if difference := next(_differences(saved, example, "state"), ""):
        raise BadInput(f"{where}: {UNFIT}: {difference}")


def of_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An example (`check`) of the state of an optimiser like Adam. PyTorch itself adds settings that an older state
    lacks."""
    names = ("lr", "betas", "eps", "weight_decay")
    groups = [
        {name: group[name] for name in names} | {"params": tuple(range(len(group["params"])))}
        for group in optimizer.param_groups
    ]
    return {"state": {}, "param_groups": tuple(groups)}


def _differences(saved: Any, example: Any, place: str) -> Iterator[str]:
    if isinstance(example, Tensor):
        if not isinstance(saved, Tensor) or saved.shape != example.shape:
            found = f"one of {tuple(saved.shape)}" if isinstance(saved, Tensor) else type(saved).__name__
            yield f"{place}: expected a tensor of shape {tuple(example.shape)}, got {found}"
        return
    kind = (list, tuple) if isinstance(example, (list, tuple)) else dict if isinstance(example, dict) else type(example)
    if not isinstance(saved, kind) or (isinstance(saved, bool) and kind is not bool):
        yield f"{place}: expected {type(example).__name__}, got {type(saved).__name__}"
    elif isinstance(example, dict):
        wanted = dict.fromkeys(saved, example[str]) if str in example else example
        yield from (f"{place}.{name}: is missing" for name in wanted if name not in saved)
        if example and all(isinstance(one, Tensor) for one in example.values()):
            yield from (f"{place}.{name}: no such tensor was expected" for name in saved if name not in wanted)
        for name, one in wanted.items():
            yield from _differences(saved[name], one, f"{place}.{name}")
    elif isinstance(example, tuple):
        more = bool(example) and example[-1] is ...
        entries = example[:-1] if more else example
        if len(saved) < len(entries) or (len(saved) > len(entries) and not more):
            yield f"{place}: expected {len(entries)} entries, got {len(saved)}"
        for i, (own, one) in enumerate(zip(saved, entries, strict=False)):
            yield from _differences(own, one, f"{place}[{i}]")
    elif isinstance(example, list) and example:
        for i, own in enumerate(saved):
            yield from _differences(own, example[0], f"{place}[{i}]")
