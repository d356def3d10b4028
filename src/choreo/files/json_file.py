"""Reads a file that is one JSON value, and says what a file is that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from choreo.errors import BadInput, first_line, opening

LFS = b"version https://git-lfs"


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`. Raises BadInput, naming the file, where it holds none."""
    found: dict[str, Any] = _read(file, dict, "object")
    return found


def read_array(file: Path) -> list[Any]:
    """The JSON array in `file`. Raises BadInput, naming the file, where it holds none."""
    found: list[Any] = _read(file, list, "array")
    return found


def instead(begin: bytes, size: int) -> str:
    """What a file is instead of what it should be, judged by its first bytes; "" where they do not show it."""
    if not size:
        return "it is empty"
    if begin.startswith(LFS):
        return "it is a Git LFS pointer; fetch the file itself (git lfs pull)"
    if begin.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page"
    return ""


def _read(file: Path, kind: type, name: str) -> Any:
    with opening(file):
        content = file.read_bytes()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else first_line(error)
        raise BadInput(f"{file}: not JSON: {instead(content[:64], len(content)) or why}") from None
    if not isinstance(value, kind):
        raise BadInput(f"{file}: expected a JSON {name}")
    return value
