"""Files that survive a kill at any moment: each is whole or absent, never half written."""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from choreo import parallel
from choreo.errors import BadInput

TEMPORARY = ".tmp"


def make_folder(folder: Path) -> None:
    """Makes the folder, and those around it, where they are missing. Raises BadInput where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder}: cannot make this folder: {error.strerror}") from None


def check_place(file: Path) -> None:
    """Ask it before long work. Raises BadInput where no file can be written at `file`: a folder has that name, or the
    folder around it is missing."""
    if file.is_dir():
        raise BadInput(f"{file}: is a folder; expected the name of a file")
    if not file.parent.is_dir():
        raise BadInput(f"{file}: there is no folder {file.parent}; make it first")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes under a temporary name, syncs to the disk, then renames: a reader sees the old file or the new one. Of
    several ranks, which have the same to say, the first one writes."""
    if parallel.rank() > 0:
        return
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Writes indented JSON. Numbers that are not finite become null, because NaN is not JSON."""
    write_text(path, json.dumps(finite(data), indent=2, allow_nan=False) + "\n")


def append_line(path: Path, data: Mapping[str, Any]) -> None:
    """Appends one JSON line and syncs. A kill meanwhile leaves half a last line, which `read_lines` skips."""
    if parallel.rank() > 0:
        return
    line = json.dumps(finite(data), allow_nan=False) + "\n"
    with open(path, "ab") as file:
        file.write(line.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSONL file, gzipped or plain; nothing where there is no such file.

    Raises BadInput, naming the file, where it is damaged in any other way than by a half-written last line.
    """
    if path.exists():
        raw = path.read_bytes()
        try:
            yield from (data for data, _ in _whole_lines(gzip.decompress(raw) if path.suffix == ".gz" else raw))
        except (OSError, EOFError, ValueError, zlib.error):
            raise BadInput(f"{path}: is damaged: not one JSON object a line") from None


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a whole gzipped JSONL file. The same records give the same bytes (there is no time stamp inside)."""
    lines = (json.dumps(finite(record), allow_nan=False) + "\n" for record in records)
    write_bytes(path, gzip.compress("".join(lines).encode("utf-8"), compresslevel=4, mtime=0))


def cut_half_line(path: Path) -> None:
    """Truncates a JSONL file after its last whole line, so that the next record begins on a line of its own."""
    if parallel.rank() == 0 and path.exists() and not (raw := path.read_bytes()).endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(raw.rfind(b"\n") + 1)
            os.fsync(file.fileno())


def cut_after(path: Path, step: int) -> None:
    """Truncates a JSONL file after its last whole line whose "step" is at most `step`. Raises BadInput where a line
    before that is damaged, and leaves the file as it is."""
    if parallel.rank() == 0 and path.exists():
        kept, last, raw = 0, 0, path.read_bytes()
        try:
            for data, end in _whole_lines(raw):
                if data["step"] > step:
                    break
                kept, last = end, data["step"]
        except (ValueError, KeyError, TypeError):
            if last < step:  # what is behind `step` goes in any case
                line = raw[:kept].count(b"\n") + 1
                raise BadInput(f"{path}:{line}: is damaged: expected a JSON object with a step") from None
        with open(path, "r+b") as file:
            file.truncate(kept)
            os.fsync(file.fileno())


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def sync_folder(folder: Path) -> None:
    """Syncs a folder to the disk: a rename in it survives a power cut only after that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _whole_lines(raw: bytes) -> Iterator[tuple[dict[str, Any], int]]:
    """Each line that was written to its end, and the byte offset behind it."""
    end = 0
    for line in raw.splitlines(keepends=True):
        end += len(line)
        if line.endswith(b"\n"):
            yield json.loads(line), end
