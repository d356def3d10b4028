"""Files of data and chat templates that ship with choreo, and folders of trained judges. A recipe or a command names
one as choreo:english/train.jsonl."""

from __future__ import annotations

from pathlib import Path

from choreo.errors import BadInput

PREFIX = "choreo:"
DATA = Path(__file__).parents[1] / "data"


def is_shipped(name: str | Path) -> bool:
    """Whether `name` is of what ships, be there one of that name or not."""
    return str(name).startswith(PREFIX)


def place(name: Path) -> Path:
    """Where the file or folder `name` lies: `name` itself, unless it ships. Raises BadInput where nothing has
    that name."""
    if not is_shipped(name):
        return name
    files = sorted(file for pattern in ("*/*.jsonl", "*/*.npz", "*/*.jinja") for file in DATA.glob(pattern))
    files += sorted(file.parent for file in DATA.glob("*/*/judge.json"))
    there = {file.relative_to(DATA).as_posix(): file for file in files}
    if (wanted := str(name).removeprefix(PREFIX)) not in there:
        raise BadInput(f"{name}: choreo ships {', '.join(PREFIX + one for one in there)}")
    return there[wanted]
