"""The folder of models that choreo has converted, each whole or absent.

It is CHOREO_CACHE/models, or else choreo/models in XDG_CACHE_HOME or ~/.cache. A model's folder is named by what it was
made from: a name for people, and the SHA-256 of the contents.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from choreo.errors import opening
from choreo.files.durable import sync_folder

DIGITS = 32  # of the digest, in the name of a folder


def models_folder() -> Path:
    """Where converted models are. It need not exist yet."""
    with opening("CHOREO_CACHE"):  # a system may not know where home is
        own, shared = os.environ.get("CHOREO_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
        # The XDG base directory specification has relative paths ignored.
        root = Path(own) if own else (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "choreo"
    return root.absolute() / "models"


def kept(digest: str) -> Path | None:
    """The folder of the model with this SHA-256, or None."""
    with opening(models_folder()):
        return next(iter(sorted(models_folder().glob(f"[!.]*-{digest[:DIGITS]}"))), None)


def source(folder: Path) -> str | None:
    """The first DIGITS digits of the SHA-256 that `folder` was converted from; None for a folder of another place."""
    named = re.search(rf"-([0-9a-f]{{{DIGITS}}})$", folder.name)
    return named[1] if named and folder.absolute().parent == models_folder() else None


def keep(name: str, digest: str, write: Callable[[Path], None]) -> Path:
    """The folder of the model with this SHA-256. `write` fills it where it is not there yet.

    Of several processes one writes, and the others wait for it. What a killed process had written is removed by the
    next one that makes the same model. Raises BadInput where the cache cannot be written.
    """
    cache = models_folder()
    with opening(cache, "cannot be written (CHOREO_CACHE names another folder)"):
        cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache / f".{digest[:DIGITS]}.lock"):
        if found := kept(digest):
            return found
        for left in cache.glob(f".{digest[:DIGITS]}-*"):
            shutil.rmtree(left, ignore_errors=True)
        with opening(cache, "cannot be written (CHOREO_CACHE names another folder)"):
            temporary = Path(tempfile.mkdtemp(prefix=f".{digest[:DIGITS]}-", dir=cache))
        try:
            temporary.chmod(0o755)  # mkdtemp's folders are for one user alone
            write(temporary)
            for file in temporary.iterdir():
                file.chmod(0o644)
                _sync(file)
            sync_folder(temporary)
            plain = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).lstrip(".")[:80] or "model"
            made = temporary.rename(cache / f"{plain}-{digest[:DIGITS]}")
            sync_folder(cache)
            return made
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Holds a lock that goes when the process does, however it ends."""
    with opening(lock), open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(file: Path) -> None:
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
