"""Which run folders there are, and a file of lines that grows while it is read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from choreo.errors import BadInput

DEPTH = 4  # of run folders below the folder that is watched
INNER = ("warmup", "ceiling")  # runs inside a run


def watched(folder: Path) -> Path:
    """The folder, in full. Raises BadInput where there is none."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise BadInput(f"{folder}: {what}; expected a run folder, or one that holds run folders")
    return folder.resolve()


def runs_in(folder: Path) -> list[Path]:
    """The run folders that are `folder` or lie below it, those inside a run behind it; in the order of their paths."""
    found: list[Path] = []

    def look(place: Path, depth: int) -> None:
        if (place / "run.json").is_file():
            found.append(place)
            inner = [place / name for name in INNER if (place / name / "run.json").is_file()]
            found.extend(inner)
        elif depth:
            for name in _folders(place):
                look(place / name, depth - 1)

    look(folder, DEPTH)
    return found


def _folders(place: Path) -> list[str]:
    try:
        with os.scandir(place) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError:  # not ours to read, or gone meanwhile
        return []


def stamp(file: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written again; None where there is none."""
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size


class GrowingLines:
    """The whole lines of a JSONL file, of which only the new ones are read.

    generation: rises when the file was cut, as by a resume, so that earlier lines are others now.
    """

    def __init__(self, file: Path):
        self.file, self.lines, self.generation = file, list[dict[str, Any]](), 0
        self._stamp: tuple[int, int, int] | None = None
        self._end, self._last = 0, b""  # the offset behind the last whole line, and that line

    def read(self) -> bool:
        """Reads what is new. Returns whether anything has changed."""
        if (now := stamp(self.file)) == self._stamp:
            return False
        self._stamp = now
        try:
            with open(self.file, "rb") as file:
                file.seek(self._end - len(self._last))
                raw = file.read()
        except OSError:
            raw = b""
        if not raw.startswith(self._last) or (self._last and not raw):
            self.lines, self._end, self._last = [], 0, b""
            self.generation += 1
            self._stamp = None
            return self.read() or True
        fresh = raw[len(self._last) :]
        whole = fresh[: fresh.rfind(b"\n") + 1]  # what a process is just writing has no end yet
        for line in whole.splitlines(keepends=True):
            self._end, self._last = self._end + len(line), line
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get("step"), int | float):
                self.lines.append(entry)
        return bool(whole)
