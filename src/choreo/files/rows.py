"""The rows of a data file, each with its line: JSON lines, a JSON array, CSV or TSV, gzipped or not, or Parquet; of a
folder of these; of a data set of the hub. It is a user's own or a shipped one.

For a row that cannot be read there is a `BadInput` that names its place, so that a caller can stop or go on. A row
cannot be read if it is not JSON, if it holds a string that is no text (`utf8`), or if it gives one field twice, since
nobody can know which of the two is meant.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from choreo.errors import BadInput
from choreo.files import columns, shipped, utf8

Row = dict[str, Any]
TABLES = {".csv": ",", ".tsv": "\t"}
KINDS = {".parquet", ".jsonl", ".ndjson", *TABLES}  # in a folder, where .json mostly says what the set is
_BETWEEN = re.compile(r"\s*,?\s*")


def rows(file: Path) -> Iterator[tuple[int, Row | BadInput]]:
    """(line, row) of every row. Lines count from 1, in the text after unpacking. In Parquet, in a data set of the hub
    and in a folder, whose files come in the order of their names, rows are counted instead.

    Raises BadInput for a file that cannot be read at all, or whose array or table is broken, because the rows behind
    that place cannot be found.
    """
    if columns.is_on_hub(file):
        yield from _columns(file, columns.hub(str(file)))
        return
    if (folder := shipped.place(file)).is_dir():
        inner = (row for one in _files(folder) for _, row in rows(one))
        yield from enumerate(inner, 1)
        return
    if _is_parquet(folder):
        yield from _columns(file, columns.parquet(folder))
        return
    text = _text(file)
    if (kind := _kind(file)) in TABLES:
        yield from _table(file, text, TABLES[kind])
    elif text.lstrip().startswith("["):
        yield from _array(file, text)
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, _row(file, number, line)


@dataclass(frozen=True, slots=True)
class Fields:
    """One row, with methods that give its fields by type. Each raises BadInput with the place of a wrong field."""

    file: Path
    line: int
    row: Row

    @property
    def where(self) -> str:
        """The row's place, FILE:LINE."""
        return f"{self.file}:{self.line}"

    def wrong(self, name: str, expected: str) -> BadInput:
        """The error for a field that is not what is `expected`."""
        got = "nothing" if name not in self.row else type(self.row[name]).__name__
        return BadInput(f"{self.where}: {name}: expected {expected}, got {got}")

    def text(self, *names: str) -> str:
        """The first of `names` that the row has, for formats that name a column in several ways."""
        name = next((name for name in names if name in self.row), names[0])
        if not isinstance(value := self.row.get(name), str):
            raise self.wrong(name, "text")
        return value

    def one_of(self, name: str, *choices: str) -> str:
        """The text of a field that must be one of `choices`."""
        if (value := self.text(name)) not in choices:
            raise BadInput(f"{self.where}: {name}: expected one of {', '.join(choices)}, got {value[:40]!r}")
        return value

    def flag(self, name: str) -> bool:
        """The field as a bool. In a table it is the text true or false."""
        value = self.row.get(name)
        if isinstance(value, str):  # a table holds text only
            value = {"true": True, "false": False}.get(value.lower())
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def zero_or_one(self, name: str) -> int:
        """The field as 0 or 1."""
        value = self.row.get(name)
        value = {"0": 0, "1": 1}.get(value) if isinstance(value, str) else value
        if isinstance(value, bool) or value not in (0, 1):
            raise self.wrong(name, "0 or 1")
        return int(value)


def _columns(file: Path, found: Iterator[Row]) -> Iterator[tuple[int, Row | BadInput]]:
    return ((number, _object(file, number, row)) for number, row in enumerate(found, 1))


def _files(folder: Path) -> list[Path]:
    """The data files of a folder, and of the folders in it."""
    found = (file for file in sorted(folder.rglob("*")) if file.is_file() and _kind(file) in KINDS)
    kept = [file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if not kept:
        raise BadInput(f"{folder}: is a folder without a data file ({', '.join(sorted(KINDS))})")
    return kept


def _kind(file: Path) -> str:
    """How a file's name ends, before .gz."""
    return Path(file.stem).suffix if file.suffix == ".gz" else file.suffix


def _is_parquet(file: Path) -> bool:
    if not file.is_file():
        return False  # a pipe can be read once
    try:
        with open(file, "rb") as stream:
            return stream.read(4) == b"PAR1"
    except (OSError, ValueError):
        return False  # `_text` says what is wrong


def _text(file: Path) -> str:
    try:
        raw = shipped.place(file).read_bytes()
        raw = gzip.decompress(raw) if file.suffix == ".gz" else raw
        if raw.startswith(b"PK\3\4"):
            raise BadInput(f"{file}: is a zip archive, as a spreadsheet is; write it as CSV or JSON lines first")
        return raw.decode("utf-8-sig")
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise BadInput(f"{file}: is no whole gzip file") from None
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        other = " (UTF-16, by its first bytes)" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else ""
        raise BadInput(f"{file}:{line}: not UTF-8{other}") from None
    except ValueError:
        raise BadInput(f"{file}: no file has a NUL in its name") from None


class _Ambiguous(dict[str, Any]):
    """A JSON object that gives a field twice."""


def _pairs(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    return row if len(row) == len(pairs) else _Ambiguous(row)


_JSON = json.JSONDecoder(object_pairs_hook=_pairs)


def _row(file: Path, line: int, text: str) -> Row | BadInput:
    try:
        row = _JSON.decode(text)
    except (ValueError, RecursionError) as error:
        table = "" if text.lstrip().startswith("{") else "; of a table the name ends in .csv or .tsv"
        return BadInput(f"{file}:{line}: not JSON: {_why(error)}{table}")
    return _object(file, line, row)


def _why(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _object(file: Path, line: int, row: Any) -> Row | BadInput:
    """`row`, or a BadInput where it is not an object, gives a field twice, or holds a string that is no text."""
    where = f"{file}:{line}"
    if not isinstance(row, dict):
        return BadInput(f"{where}: expected an object, got {type(row).__name__}")
    try:
        if twice := _twice(row):
            return BadInput(f"{where}: {twice} says a field twice")
        wrong = utf8.broken(row)
    except RecursionError as error:
        return BadInput(f"{where}: not JSON: {_why(error)}")
    return BadInput(f"{where}: {'.'.join(wrong[0])}: {wrong[1]}") if wrong else row


def _twice(value: Any, name: str = "the row") -> str | None:
    """The name of the first object in `value` that gives a field twice."""
    if isinstance(value, _Ambiguous):
        return name
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for key, one in inner if (found := _twice(one, str(key)))), None)


def _array(file: Path, text: str) -> Iterator[tuple[int, Row | BadInput]]:
    end, line, counted = text.index("[") + 1, 1, 0
    while True:
        end = _BETWEEN.match(text, end).end()  # type: ignore[union-attr]  # it also matches the empty text
        line, counted = line + text.count("\n", counted, end), end
        if text[end : end + 1] == "]":
            if text[end + 1 :].strip():
                raise BadInput(f"{file}:{line}: more after the end of the array")
            return
        try:
            row, end = _JSON.raw_decode(text, end)
        except json.JSONDecodeError as error:
            raise BadInput(f"{file}:{error.lineno}: not JSON: {_why(error)}") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits
            raise BadInput(f"{file}:{line}: not JSON: {_why(error)}") from None
        yield line, _object(file, line, row)


def _table(file: Path, text: str, delimiter: str) -> Iterator[tuple[int, Row | BadInput]]:
    """The first line names the columns. A row's line is the one on which it ends: cells may hold line breaks."""
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    csv.field_size_limit(2**31 - 1)
    try:
        columns = next(table, [])
        if twice := [name for name, count in Counter(columns).items() if name and count > 1]:
            raise BadInput(f"{file}:1: {twice[0]}: two columns have this name")
        if len(columns) == 1 and (other := next((mark for mark in ",;\t" if mark in columns[0]), "")):
            marks = {",": "commas", ";": "semicolons", "\t": "tabs"}
            wrong = f"expected {marks[delimiter]} between columns, not {marks[other]}"
            raise BadInput(f"{file}:1: one column, {columns[0]!r}: {wrong}")
        for cells in table:
            if not cells:
                continue
            if len(cells) != len(columns):
                wrong = f"expected {len(columns)} columns, as the first line has, got {len(cells)}"
                yield table.line_num, BadInput(f"{file}:{table.line_num}: {wrong}")
            else:
                yield table.line_num, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise BadInput(f"{file}:{table.line_num}: not a table: {error}") from None
