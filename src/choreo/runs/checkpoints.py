"""The checkpoints of a run folder, and which of them is meant."""

from __future__ import annotations

import re
from hashlib import blake2b
from pathlib import Path

from choreo.errors import BadInput


def checkpoints(path: str | Path) -> dict[int, Path]:
    """The finished checkpoints of the run at `path`, by step. A folder with a temporary name is not finished."""
    folders = (folder for folder in Path(path).glob("checkpoints/step-*") if re.fullmatch(r"step-\d+", folder.name))
    return {step_named(folder): folder for folder in sorted(folders)}


def checkpoint_at(path: str | Path, step: int | None = None) -> tuple[int, Path | None]:
    """(step, folder) of a checkpoint of the run at `path`; (0, None) stands for the untrained agents.

    step: by default the last, or untrained where the run has not come to its first checkpoint. 0 is untrained.

    Raises BadInput where there is no such checkpoint, and where the run is finished and its checkpoints are gone.
    """
    found = checkpoints(path)
    if step is None and not found and (Path(path) / "summary.json").is_file():
        raise BadInput(f"{path}: is a finished run without checkpoints; bring them back, or train it anew elsewhere")
    chosen = max(found, default=0) if step is None else step
    if chosen and chosen not in found:
        there = ", ".join(map(str, found)) or "none"
        raise BadInput(f"{path}: no checkpoint of step {step}; there are {there}, and 0 is untrained")
    return chosen, found.get(chosen)


def last_checkpoint(path: str | Path) -> tuple[int, Path]:
    """(step, folder) of the last checkpoint of the run at `path`. Raises BadInput where it has none."""
    step, folder = checkpoint_at(path)
    if folder is None:
        raise BadInput(f"{path}: has no checkpoint yet; go on with choreo train --resume {path}")
    return step, folder


def checkpoint_digest(folder: Path | None) -> str:
    """16 hex digits of what the checkpoint in `folder` holds; "" for None, which is untrained."""
    if folder is None:
        return ""
    digest = blake2b(digest_size=8)
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        with open(file, "rb") as stream:
            digest.update(f"{file.relative_to(folder)}/{file.stat().st_size}/".encode())
            while piece := stream.read(2**20):
                digest.update(piece)
    return digest.hexdigest()


def step_named(path: Path) -> int:
    """The step in the name of a folder or file, such as step-000010 or step-000010.jsonl.gz."""
    return int(path.name.removeprefix("step-").split(".")[0])
