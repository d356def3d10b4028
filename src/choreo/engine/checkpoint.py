"""Checkpoints that are whole or absent: written beside their place, fsynced, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_FILE = "state.pt"


def save(folder: str | Path, state: Mapping[str, Any]) -> None:
    """Writes `state` (nested dicts, lists, numbers, strings and tensors, kept bit for bit) as the new folder `folder`.

    Raises FileExistsError rather than replace one. A crash leaves at most a folder whose name starts with ".tmp-".
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".tmp-{folder.name}"
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    with open(temporary / _FILE, "wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    _sync(temporary)
    os.rename(temporary, folder)
    _sync(folder.parent)


def load(folder: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The state that `save` was given, tensors on `device`. Raises FileNotFoundError; runs no code from the file."""
    return torch.load(Path(folder) / _FILE, map_location=device, weights_only=True)


def _sync(folder: Path) -> None:
    """Makes the folder's own entries durable, the rename among them."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
