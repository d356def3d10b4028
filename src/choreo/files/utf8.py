"""What is text: whatever UTF-8 can encode. The one rule, applied at every door where text enters.

Half a surrogate pair (JSON's "\\ud83d" alone) and a byte that is not UTF-8 are no text. NUL, control characters and a
byte order mark in the middle are text. What a user gives and can mend is refused, with its place (`broken`). What a
model or a server said cannot be mended by anybody: there U+FFFD stands for what is broken (`mended`), as every
tokenizer writes for bytes that make no letter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Place = tuple[str, ...]

REPLACED = "\ufffd"


def is_text(said: str) -> bool:
    """Whether UTF-8 can encode `said`."""
    if said.isascii():
        return True
    try:
        said.encode()
    except UnicodeEncodeError:
        return False
    return True


def broken(data: Any, place: Place = ()) -> tuple[Place, str] | None:
    """The first string in `data` (of dicts, lists and plain values) that is no text: its keys, and what is wrong.

    A key that is no text counts too. None where all is text. The words can be printed.
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
        inside = (*place, shown(str(key)))
        if found := broken(key, inside) or broken(inner, inside):
            return found
    return None


def mended(data: Any) -> Any:
    """`data` (of dicts, lists and plain values) with U+FFFD for every half of a character; whole pairs are joined."""
    if isinstance(data, str):
        return data if is_text(data) else data.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(data, dict):
        return {mended(key): mended(inner) for key, inner in data.items()}
    return [mended(inner) for inner in data] if isinstance(data, list) else data


def shown(said: str) -> str:
    """`said` as it can be printed: what is no text in it by its number."""
    return said.encode("utf-8", "backslashreplace").decode()


def loads(raw: str | bytes) -> Any:
    """JSON that a model or a server wrote, mended, bytes that are no UTF-8 too. Raises ValueError, and RecursionError
    where it nests too deep."""
    try:
        return mended(json.loads(raw))
    except UnicodeDecodeError:
        assert isinstance(raw, bytes)
        return mended(json.loads(raw.decode(errors="replace")))


def _half(said: str) -> str:
    return next(f"\\u{ord(letter):04x}" for letter in said if "\ud800" <= letter <= "\udfff")
