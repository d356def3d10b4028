"""The one rule for what is text, used wherever text enters: text is what UTF-8 can encode.

Half of a surrogate pair (JSON's "\\ud83d" alone) and a byte that is not UTF-8 are no text. NUL, control characters and
a byte order mark in the middle are text. Broken text of a user is refused with its place (`broken`), since the user can
correct it. Nobody can correct what a model or a server wrote, so its broken characters become U+FFFD (`repaired`),
which tokenizers too write for bytes that make no letter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from choreo.errors import BadInput

Place = tuple[str, ...]

REPLACED = "\ufffd"


def is_text(string: str) -> bool:
    """Whether UTF-8 can encode `string`."""
    if string.isascii():
        return True
    try:
        string.encode()
    except UnicodeEncodeError:
        return False
    return True


def broken(data: Any, place: Place = ()) -> tuple[Place, str] | None:
    """The first string in `data` (of dicts, lists and plain values) that is no text: its place, and what is wrong.

    The place is the keys that lead to it. Keys that are no text count too. None where all is text. Both can be printed.
    """
    if isinstance(data, str):
        return None if is_text(data) else (place, f"no text: {_half(data)} is half of a character")
    if isinstance(data, Mapping):
        items: Any = data.items()
    elif isinstance(data, (list, tuple)):
        items = enumerate(data)
    else:
        return None
    for key, inner in items:
        inside = (*place, printable(str(key)))
        if found := broken(key, inside) or broken(inner, inside):
            return found
    return None


def repaired(data: Any) -> Any:
    """`data` (of dicts, lists and plain values) with U+FFFD for every half of a character; whole pairs are joined."""
    if isinstance(data, str):
        return data if is_text(data) else data.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(data, dict):
        return {repaired(key): repaired(inner) for key, inner in data.items()}
    return [repaired(inner) for inner in data] if isinstance(data, list) else data


def printable(string: str) -> str:
    """`string` in a form that can be printed: characters that are no text are shown by their numbers."""
    return string.encode("utf-8", "backslashreplace").decode()


def read_text(file: Path) -> str:
    """The text of `file`, without the byte order mark of some editors. Raises BadInput, naming file and line."""
    try:
        raw = file.read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}:{raw.count(10, 0, error.start) + 1}: not UTF-8 text") from None


def loads(raw: str | bytes) -> Any:
    """JSON that a model or a server wrote, with broken characters and bytes repaired.

    Raises ValueError where it is not JSON, and RecursionError where it nests too deep.
    """
    try:
        return repaired(json.loads(raw))
    except UnicodeDecodeError:
        assert isinstance(raw, bytes)
        return repaired(json.loads(raw.decode(errors="replace")))


def _half(string: str) -> str:
    return next(f"\\u{ord(letter):04x}" for letter in string if "\ud800" <= letter <= "\udfff")
