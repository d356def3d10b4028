"""Reads a file in one of several published formats: recognises the format by its fields, and counts what it reads.

A named format comes first, then choreo's own fields, then the fields of published data sets, which share many names.
Where two published formats fit, none is guessed. A row that does not fit its format is bad input, with file and line. A
row that fits but is of no use (two equal answers, a prompt that was there before, …) is left out and counted under its
reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from choreo.config import parts
from choreo.errors import BadInput
from choreo.files.rows import Fields, Row, rows
from choreo.registry import is_own

T = TypeVar("T")

BARE, PUBLISHED, OWN_CHAT, OWN = range(4)
NAMED = "by name"  # in `Loaded.by`: the user named the format
# Fields that number rows, which any file may have.
INDEX = frozenset({"", "id", "ID", "index", "Index", "idx", "Unnamed: 0", "__index_level_0__"})


class Unusable(Exception):
    """A row that fits its format but is of no use. The message is the reason under which it is counted."""


class Unknown(BadInput):
    """No format has the `fields` of a file's first row. nearly: text on the most similar format, for the message."""

    def __init__(self, place: str, fields: frozenset[str], nearly: str = ""):
        known = "docs/your-data.md has those that are known"
        what = f"no known format has the fields {listed(sorted(fields))}" if fields else "a row without any field"
        super().__init__(f"{place}: {what}{nearly} ({known})")
        self.fields = fields


@dataclass(frozen=True, slots=True)
class Format(Generic[T]):
    """One format of rows. about: a short description. read: makes one T of a row.

    fields: a row that has them all fits.
    whole: all fields that a row may have beside an index, for formats whose `fields` are common words; None is any.
    rank: OWN for fields that state what a row is, OWN_CHAT where a conversation stands in place of the prompt,
        PUBLISHED for those of data sets, from which it is guessed, and BARE for fields that do not show it.
    """

    about: str
    fields: frozenset[str]
    read: Callable[[Fields], T]
    whole: frozenset[str] | None = None
    rank: int = PUBLISHED

    @property
    def own(self) -> bool:
        return self.rank >= OWN_CHAT


@dataclass
class Loaded(Generic[T]):
    """The content of a file. by: how its format was recognised. left_out: the lines of rows of no use, by reason.
    wrong: messages on rows that do not fit, with their places; empty where the first such row raises."""

    format: str
    by: str = NAMED
    rows: list[T] = field(default_factory=list)
    left_out: dict[str, list[int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def read(self) -> int:
        return len(self.rows) + sum(map(len, self.left_out.values())) + len(self.wrong)

    def leave_out(self, reason: str, line: int) -> None:
        """Counts the row at `line` as left out for `reason`."""
        self.left_out.setdefault(reason, []).append(line)

    @property
    def counts(self) -> Counter[str]:
        """The number of rows that were left out, by reason."""
        return Counter({reason: len(lines) for reason, lines in self.left_out.items()})


def load(
    file: Path,
    formats: Mapping[str, Format[T]],
    format: str | None = None,
    *,
    own: frozenset[str] = frozenset(),
    tolerant: bool = False,
) -> Loaded[T]:
    """All rows of `file`.

    format: a key of `formats`, or a format of the user's own (`row_format`), whose rows are then recognised. None
        recognises it by the first row's fields, and then demands it of every other row.
    own: fields that only choreo's own formats have. A row with one of them is never guessed to have another format.

    Raises BadInput for a file that cannot be read, or that fits no format or several. Unless `tolerant`, it also raises
    BadInput for the first row that does not fit, naming file, line and field.
    """
    changed = None if format is None or format in formats else row_format(format)
    if format is not None and format not in formats and changed is None:
        raise BadInput(f"{file}: no format {format!r}; there are {', '.join(formats)}, or file.py:function of your own")
    named = None if changed else format
    loaded: Loaded[T] | None = None
    broken: list[str] = []
    unwanted: list[int] = []  # rows of which a format of the user's own makes nothing
    agreed: set[frozenset[str]] = set()  # sets of fields that were found to be of the file's format
    for line, row in rows(file):
        try:
            if isinstance(row, BadInput):
                raise row
            if changed:
                if not (made := changed(file, line, row)):
                    unwanted.append(line)
                    continue
                row = made
            if loaded is None:
                name = named or recognised(f"{file}:{line}", row, formats, own)
                by = NAMED if named else f"by its fields {listed(_in_order(row, formats[name].fields))}"
                loaded = Loaded(name, f"{by}, as {format} gives them" if changed else by, wrong=broken)
            elif not named and (fields := frozenset(row)) not in agreed:
                _agree(f"{file}:{line}", row, loaded.format, formats, own)
                agreed.add(fields)
            loaded.rows.append(formats[loaded.format].read(Fields(file, line, row)))
        except Unusable as reason:
            assert loaded is not None
            loaded.leave_out(str(reason), line)
        except BadInput as wrong:
            # Without a format no later row can be read either.
            if not tolerant or (loaded is None and not isinstance(row, BadInput)):
                raise
            broken.append(str(wrong))
    if loaded is None:
        raise BadInput(broken[0] if broken else f"{file}: holds no rows{f' that {format} takes' if unwanted else ''}")
    if unwanted:
        loaded.left_out[f"{format} makes nothing of them"] = unwanted
    return loaded


RowFormat = Callable[[Row], Row | None]
"""A data format of the user's own: from a row of the file to a row in a known format, or None to leave it out."""

ROW_FORMATS: dict[str, RowFormat] = {}  # by a name that may be given beside module:function


def row_format(name: str) -> Callable[[Path, int, Row], Row | None] | None:
    """The user's or an installed package's data format of this name; None where there is none.

    What is returned takes the file and the line, too, and raises BadInput, naming them, where the function fails or
    gives no row. Raises BadInput where `name` means a function that cannot be had.
    """
    if not is_own(name) and name not in parts.ROW_FORMATS.names():
        return None
    function: RowFormat = parts.ROW_FORMATS.get(name)

    def changed(file: Path, line: int, row: Row) -> Row | None:
        try:
            made = function(dict(row))
        except Exception as error:  # the user's function may raise anything
            raise BadInput(f"{file}:{line}: {name}: {type(error).__name__}: {error!s:.200}") from error
        if made is not None and not isinstance(made, dict):
            raise BadInput(f"{file}:{line}: {name}: expected a dict of fields, or None, got {made!r:.60}")
        return made

    return changed


def fitting(row: Row, formats: Mapping[str, Format[T]]) -> list[str]:
    """The formats that fit `row`: those of the highest rank, without formats whose fields are a part of another's."""
    fits = {name: one for name, one in formats.items() if one.fields <= row.keys() and not _beyond(row, one)}
    rank = max((one.rank for one in fits.values()), default=OWN)
    fits = {name: one for name, one in fits.items() if one.rank == rank}
    return [name for name, one in fits.items() if not any(one.fields < other.fields for other in fits.values())]


def recognised(place: str, row: Row, formats: Mapping[str, Format[T]], own: frozenset[str]) -> str:
    """The format of a row by its fields.

    Raises BadInput where several formats fit, or where the row has fields of choreo's own and the format has not; and
    Unknown where none fits.
    """
    fits = fitting(row, formats)
    if nearly := [name for name in row if name not in own and name.strip().casefold() in own]:
        otherwise = f", or {how_to_name(fits[0])}" if fits and formats[fits[0]].rank == PUBLISHED else ""
        meant = nearly[0].strip().casefold()
        raise BadInput(f"{place}: {nearly[0]!r}: choreo's own field is {meant!r}: rename it{otherwise}")
    if not fits:
        raise Unknown(place, frozenset(row), _nearly(row, formats))
    if len(fits) > 1:
        both = " and ".join(_described(name, formats) for name in fits)
        raise BadInput(f"{place}: the fields fit {len(fits)} formats, {both}; {how_to_name(fits[0])}")
    own_here = [name for name in row if name in own]
    if own_here and not formats[fits[0]].own:
        mine = next(name for name, one in formats.items() if one.own)
        wanted = listed(sorted(formats[mine].fields))
        raise BadInput(
            f"{place}: {own_here[0]}: is choreo's own field, but the other fields are those of "
            f"{_described(fits[0], formats)}. Rows of your own need the fields {wanted}. "
            f"For the other format, {how_to_name(fits[0])}"
        )
    return fits[0]


def how_to_name(name: str) -> str:
    """How a user names the format `name`, for messages."""
    return f'name it: format = "{name}" in a recipe, --format {name} on the command line'


def listed(names: Iterable[str]) -> str:
    """Names with commas between; "" for an empty name."""
    return ", ".join(name or '""' for name in names)


def taken(name: str, counts: Mapping[str, Any]) -> str:
    """A line with a file's format, how it was recognised, and how many rows are used. counts: by `counted`."""
    return f"{name}: {', '.join(f'{what} {count}' for what, count in counts.items())}"


def counted(loaded: Loaded[Any]) -> dict[str, Any]:
    """A file's format, how it was recognised, and how many rows were read, used, and left out for each reason."""
    counts = {"format": loaded.format, "known": loaded.by, "read": loaded.read, "used": len(loaded.rows)}
    return counts | loaded.counts


def _agree(place: str, row: Row, format: str, formats: Mapping[str, Format[T]], own: frozenset[str]) -> None:
    """Raises BadInput where a row has all fields of the file's format but is recognised as another one. A row that
    lacks a field is reported by `Format.read`."""
    if formats[format].fields <= row.keys() and (other := recognised(place, row, formats, own)) != format:
        if formats[other].own:
            raise BadInput(
                f"{place}: has the fields of {_described(other, formats)}. The first row lacks one "
                f"of them, so the file was read as {_described(format, formats)}. "
                "Write the fields in every row"
            )
        raise BadInput(
            f"{place}: has the fields of {_described(other, formats)}, but the first row has those "
            f"of {_described(format, formats)}. Put them into two files. If the first row is right, "
            f"{how_to_name(format)}"
        )


def _beyond(row: Row, format: Format[T]) -> list[str]:
    """The fields of `row` that a row of this format cannot have."""
    return [] if format.whole is None else [name for name in row if name not in format.whole | format.fields | INDEX]


def _nearly(row: Row, formats: Mapping[str, Format[T]]) -> str:
    near = [name for name, one in formats.items() if one.fields <= row.keys()]
    if not near:
        return ""
    others = listed(_beyond(row, formats[near[0]]))
    return f"; {_described(near[0], formats)} has no {others}; if the file is that format, {how_to_name(near[0])}"


def _described(name: str, formats: Mapping[str, Format[T]]) -> str:
    return f"{formats[name].about} ({name}: {listed(sorted(formats[name].fields))})"


def _in_order(row: Row, fields: frozenset[str]) -> list[str]:
    return [name for name in row if name in fields]
