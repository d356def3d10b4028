"""System messages of callers in files: a message in each row, {role, content}."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from choreo.data import reading
from choreo.data.reading import Format, Loaded
from choreo.errors import BadInput
from choreo.files.rows import Fields

ROLES = ("system", "developer")  # one role under two names


@dataclass(frozen=True, slots=True)
class SystemMessage:
    """A system message of a caller, and the line that it stands in."""

    line: int
    text: str


def _message(row: Fields) -> SystemMessage:
    row.one_of("role", *ROLES)
    text = row.text("content")
    if not text.strip():
        raise BadInput(f"{row.where}: content: expected words, got none")
    return SystemMessage(row.line, text)


FORMATS = {"system": Format("system messages of callers", frozenset({"role", "content"}), _message)}


def load_system_messages(
    path: str | Path, format: str | None = None, *, tolerant: bool = False
) -> Loaded[SystemMessage]:
    """The system messages of `path`, each once; see `reading.load`."""
    loaded = reading.load(Path(path), FORMATS, format, tolerant=tolerant)
    found: Loaded[SystemMessage] = Loaded(loaded.format, loaded.by, [], loaded.left_out, loaded.wrong)
    seen = set[str]()
    for message in loaded.rows:
        if message.text in seen:
            found.leave_out("a message that was there before", message.line)
        else:
            seen.add(message.text)
            found.rows.append(message)
    return found
