"""Checkpoints that are whole or absent: written beside their place, fsynced, renamed."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from choreo.errors import BadInput, opening
from choreo.runs.files import sync_folder

_FILE = "state.pt"
UNFIT = "is no checkpoint of this recipe in this version"


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
    sync_folder(temporary)
    os.rename(temporary, folder)
    sync_folder(folder.parent)


def load(folder: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The state that `save` was given, tensors on `device`. Runs no code from the file. Raises BadInput where it holds
    none."""
    file = Path(folder) / _FILE
    with opening(file, "no checkpoint can be read from it"):
        try:
            state = torch.load(file, map_location=device, weights_only=True)
        except pickle.UnpicklingError:  # whose words are advice on how to run code from the file
            state = None
    if not isinstance(state, dict):
        raise BadInput(f"{file}: is no checkpoint of choreo's")
    return state
