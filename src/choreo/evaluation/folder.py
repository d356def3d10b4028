"""The folder of an evaluation: where the replies of judges and the report go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from choreo.clients.cache import Cache
from choreo.errors import BadInput
from choreo.files import durable
from choreo.files.json_file import read_object
from choreo.runs.folder import new_folder
from choreo.runs.lock import LOCK

# What a folder has one of, once it was begun.
BEGUN = {
    "eval": ("eval.toml", "dialogues.json", "judgements.sqlite", "replies.sqlite"),
    "attack": ("run.json",),
}


@contextmanager
def evaluation_folder(out: str | Path | None, into_existing: bool, name: str = "eval") -> Iterator[Path]:
    """Where an evaluation's replies and report go. A folder that was made for it goes again where the input was wrong,
    so that the same command can be typed once more.

    name: of a folder that is not named, and what a run.json that is there must have as its method. into_existing: goes
    on in a folder that an evaluation has begun, or begins one.

    Raises BadInput where that cannot be, or something is there already.
    """
    folder = Path(out) if out else new_folder(name)
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file; --out names a folder")
    info = folder / "run.json"
    if info.is_file() and read_object(info).get("method") != name:  # its summary and its page are of what was trained
        raise BadInput(f"{folder}: is a run's folder, whose summary and page would be written over; name another")
    there = [one.name for one in folder.iterdir() if one.name != LOCK] if folder.is_dir() else []
    if into_existing and there and not set(BEGUN[name]) & set(there):
        raise BadInput(f"{folder}: holds {min(there)!r} and no {name} to go on with; name another with --out")
    if there and not into_existing:
        raise BadInput(f"{folder}: already exists; name another with --out, or go on with --resume")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    durable.make_folder(folder)
    try:
        yield folder
    except BadInput:
        if made and _holds_nothing(folder):
            for file in folder.iterdir():
                file.unlink()
            with suppress(OSError):  # another evaluation has begun beside it
                for path in made:
                    path.rmdir()
        raise


def _holds_nothing(folder: Path) -> bool:
    """Whether there is nothing in `folder` but a lock and files for replies, and no reply in them."""
    if not all(one.name == LOCK or one.name.partition(".")[2].startswith("sqlite") for one in folder.iterdir()):
        return False
    return not any(len(Cache(file)) for file in folder.glob("*.sqlite"))
