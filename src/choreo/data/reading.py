"""A file in one of several published formats: recognised by its fields, read row by row, and accounted for.

A row that does not fit its format is bad input, by file and line. A row that fits but is of no use (two equal answers,
a prompt that was there before, …) is left out and counted under its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from choreo.errors import BadInput
from choreo.rows import Fields, Row, rows

T = TypeVar("T")


class Unusable(Exception):
    """A row that fits its format and is of no use; the message is the reason it is counted under."""


class Unknown(BadInput):
    """No format has the `fields` of a file's first row."""

    def __init__(self, place: str, fields: frozenset[str]):
        known = "docs/your-own-data.md has those that are known"
        told = f"no known format has the fields {', '.join(sorted(fields))}" if fields else "a row without any field"
        super().__init__(f"{place}: {told} ({known})")
        self.fields = fields


@dataclass(frozen=True, slots=True)
class Format(Generic[T]):
    """fields: a row that has them all is taken for one of this format. about: what it is, in a few words."""

    about: str
    fields: frozenset[str]
    read: Callable[[Fields], T]


@dataclass
class Loaded(Generic[T]):
    """What a file held. left_out: the lines of rows of no use, by reason. wrong: rows that do not fit, in words that
    name their place; empty where the first such row raises."""

    format: str
    rows: list[T] = field(default_factory=list)
    left_out: dict[str, list[int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def read(self) -> int:
        return len(self.rows) + sum(map(len, self.left_out.values())) + len(self.wrong)

    def leave_out(self, reason: str, line: int) -> None:
        self.left_out.setdefault(reason, []).append(line)

    @property
    def counts(self) -> Counter[str]:
        """How many rows were left out, by reason."""
        return Counter({reason: len(lines) for reason, lines in self.left_out.items()})


def load(
    file: Path, formats: Mapping[str, Format[T]], format: str | None = None, *, tolerant: bool = False
) -> Loaded[T]:
    """All rows of `file`. format: a key of `formats`; None finds it by the first row's fields.

    Raises BadInput for a file that cannot be read or that no format fits; and, unless `tolerant`, for the first row
    that does not fit, naming file, line and field.
    """
    if format is not None and format not in formats:
        raise BadInput(f"{file}: no format {format!r}; there are {', '.join(formats)}")
    loaded: Loaded[T] | None = None
    broken: list[str] = []
    for line, row in rows(file):
        try:
            if isinstance(row, BadInput):
                raise row
            if loaded is None:
                loaded = Loaded(format or _recognised(file, line, row, formats), wrong=broken)
            loaded.rows.append(formats[loaded.format].read(Fields(file, line, row)))
        except Unusable as reason:
            assert loaded is not None
            loaded.leave_out(str(reason), line)
        except BadInput as wrong:
            # Without a format, no later row would fare better.
            if not tolerant or (loaded is None and not isinstance(row, BadInput)):
                raise
            broken.append(str(wrong))
    if loaded is None:
        raise BadInput(broken[0] if broken else f"{file}: holds no rows")
    return loaded


def fitting(row: Row, formats: Mapping[str, Format[T]]) -> str | None:
    """The first of `formats` whose fields `row` has."""
    return next((name for name, format in formats.items() if format.fields <= row.keys()), None)


def _recognised(file: Path, line: int, row: Row, formats: Mapping[str, Format[T]]) -> str:
    if name := fitting(row, formats):
        return name
    raise Unknown(f"{file}:{line}", frozenset(row))
