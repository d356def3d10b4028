"""TOML for recipes: reads a file with the lines of its keys, reads `a.b=c` arguments, and writes."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from choreo.errors import BadInput
from choreo.files import utf8

Keys = tuple[str, ...]

_AT = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_HEADER = re.compile(r"\s*\[+\s*([^\[\]]+?)\s*\]+\s*(?:#.*)?$")
_PAIR = re.compile(r"\s*([\w\-.\"' \t]+?)\s*=")


def read(file: Path) -> tuple[dict[str, Any], dict[Keys, int]]:
    """The data of a TOML file, and the line (from 1) on which each of its tables and keys first appears.

    Raises BadInput, naming file and line, for a file that cannot be read or is not TOML.
    """
    text = utf8.read_text(file)
    try:
        return tomllib.loads(text), _key_lines(text)
    except RecursionError:
        raise BadInput(f"{file}: not valid TOML: nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        at = _AT.search(str(error))
        line = int(at[1]) if at and at[1] else max(1, len(text.splitlines()))
        raise BadInput(f"{file}:{line}: not valid TOML: {_AT.sub('', str(error))}") from None


def line_of(lines: Mapping[Keys, int], keys: Keys) -> int:
    """The line of `keys`, or of the nearest table around it that has one."""
    while keys and keys not in lines:
        keys = keys[:-1]
    return lines.get(keys, 1)


def leaves(table: Mapping[str, Any], above: Keys = ()) -> dict[Keys, Any]:
    """Every value of nested tables by its keys. A table without keys has none."""
    found: dict[Keys, Any] = {}
    for key, value in table.items():
        found |= leaves(value, (*above, key)) if isinstance(value, Mapping) else {(*above, key): value}
    return found


def assign(data: dict[str, Any], argument: str) -> Keys:
    """Sets one "a.b=c" in `data`, in place, and returns its keys. c is read as a TOML value, or else as plain text."""
    name, equals, raw = argument.partition("=")
    keys = _dotted(name)
    if not equals or not all(keys):
        raise BadInput(f"--set {argument}: expected section.key=value")
    try:
        parsed = tomllib.loads(f"value = {raw}")
        value = parsed["value"] if parsed.keys() == {"value"} else raw
    except (ValueError, RecursionError):
        value = raw
    for key in keys[:-1]:
        if not isinstance(data.get(key), dict):
            data[key] = {}
        data = data[key]
    data[keys[-1]] = value
    return keys


def dumps(data: Mapping[str, Any], comment: Callable[[Keys], str] = lambda keys: "") -> str:
    """TOML text of nested tables of numbers, text, booleans and lists. Keys must be bare. What is None is left out.

    comment: gives the line to write above the value at some keys; "" is none.
    """
    return "\n".join(_tables((), data, comment)).lstrip("\n") + "\n"


def _tables(path: Keys, table: Mapping[str, Any], comment: Callable[[Keys], str]) -> Iterator[str]:
    if path:
        yield f"\n[{'.'.join(path)}]"
    for key, value in table.items():
        if value is not None and not isinstance(value, Mapping):
            if line := comment((*path, key)):
                yield f"# {line}"
            yield f"{key} = {_value(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _tables((*path, key), value, comment)


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    # A JSON number, text or boolean is also TOML, except that TOML demands an escape for DEL.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def _key_lines(text: str) -> dict[Keys, int]:
    table: Keys = ()
    lines: dict[Keys, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if header := _HEADER.match(line):
            table = path = _dotted(header[1])
        elif pair := _PAIR.match(line):
            path = table + _dotted(pair[1])
        else:
            continue
        for depth in range(1, len(path) + 1):
            lines.setdefault(path[:depth], number)
    return lines


def _dotted(key: str) -> Keys:
    return tuple(part.strip(" \t\"'") for part in key.split("."))
