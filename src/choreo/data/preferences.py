"""Preference data in the formats that are published: MACPO's release, HH-RLHF, PKU-SafeRLHF.

A row that does not fit its format is bad input, by file and line. A row that fits but teaches nothing (its two answers
are equal, its dialogues differ in more than the last answer, …) is left out and counted under its reason.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from choreo.errors import BadInput

Turns = tuple[tuple[str, str], ...]  # ("user" or "assistant", text), the last one the user's
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """turns: the dialogue up to the answer. rejected is None in supervised data. line: of the file, from 1."""

    turns: Turns
    chosen: str
    rejected: str | None
    line: int


@dataclass
class Loaded:
    """What a file held: its format, the pairs to learn from, and why other rows were left out."""

    format: str
    pairs: list[Pair] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def read(self) -> int:
        return len(self.pairs) + self.left_out.total()


class Unusable(Exception):
    """A row that fits its format and teaches nothing; the message is the reason it is counted under."""


def load(path: str | Path, format: str | None = None) -> Loaded:
    """All rows of `path`: a JSON array, or one JSON object a line. format: a key of FORMATS; None finds it by the first
    row's fields. Raises BadInput, naming file, line and field, for a file or a row that does not fit."""
    file = Path(path)
    if format is not None and format not in FORMATS:
        raise BadInput(f"{file}: no format {format!r}; there are {', '.join(FORMATS)}")
    loaded: Loaded | None = None
    for line, row in _rows(file):
        if loaded is None:
            loaded = Loaded(format or _recognised(file, line, row))
        try:
            turns, chosen, rejected = FORMATS[loaded.format][1](_Fields(f"{file}:{line}", row))
        except Unusable as reason:
            loaded.left_out[str(reason)] += 1
        else:
            loaded.pairs.append(Pair(turns, chosen, rejected, line))
    if loaded is None:
        raise BadInput(f"{file}: holds no rows")
    return loaded


class _Fields:
    """One row, asked for its fields by type."""

    def __init__(self, where: str, row: Row):
        self.where, self.row = where, row

    def wrong(self, name: str, expected: str) -> BadInput:
        got = "nothing" if name not in self.row else type(self.row[name]).__name__
        return BadInput(f"{self.where}: {name}: expected {expected}, got {got}")

    def text(self, name: str) -> str:
        if not isinstance(value := self.row.get(name), str):
            raise self.wrong(name, "text")
        return value

    def flag(self, name: str) -> bool:
        if not isinstance(value := self.row.get(name), bool):
            raise self.wrong(name, "true or false")
        return value

    def which(self, name: str) -> int:
        value = self.row.get(name)
        if isinstance(value, bool) or value not in (0, 1):
            raise self.wrong(name, "0 or 1")
        return value


Read = Callable[[_Fields], tuple[Turns, str, str | None]]


def _macpo(row: _Fields) -> tuple[Turns, str, str | None]:
    """{instruction, input, output}: output is an answer, or [chosen, rejected]. HH dialogues are flattened into the
    instruction as USER: … ASSISTANT: … USER: …; anything else is one prompt."""
    told = "\n".join(part for part in (row.text("instruction"), row.text("input")) if part.strip())
    turns = _dialogue(row, told, "USER:", "ASSISTANT:") if told.lstrip().startswith("USER:") else (("user", told),)
    output = row.row.get("output")
    if isinstance(output, str):
        return (*_asked(turns), _said(output), None)
    if not (isinstance(output, list) and len(output) == 2 and all(isinstance(text, str) for text in output)):
        raise row.wrong("output", "an answer, or a list of a chosen and a rejected one")
    return (*_asked(turns), *_different(*output))


def _hh(row: _Fields) -> tuple[Turns, str, str | None]:
    """{chosen, rejected}: whole dialogues of Human: and Assistant: turns that differ in the last answer."""
    whole = [_dialogue(row, row.text(name), "\n\nHuman:", "\n\nAssistant:", name) for name in ("chosen", "rejected")]
    for name, turns in zip(("chosen", "rejected"), whole, strict=True):
        if turns[-1][0] != "assistant":
            raise BadInput(f"{row.where}: {name}: expected a dialogue that ends with an Assistant: turn")
    (*chosen, good), (*rejected, bad) = whole
    if chosen != rejected:
        raise Unusable("the two dialogues differ before their last answer")
    return (*_asked(tuple(chosen)), *_different(good[1], bad[1]))


def _pku(row: _Fields) -> tuple[Turns, str, str | None]:
    """{prompt, response_0, response_1, …}: chosen is the safer one, and of two that are alike in safety the better."""
    answers = [row.text("response_0"), row.text("response_1")]
    safe = [row.flag("is_response_0_safe"), row.flag("is_response_1_safe")]
    safer, better = row.which("safer_response_id"), row.which("better_response_id")
    chosen = better if safe[0] == safe[1] else safer
    if safe[0] != safe[1] and not safe[chosen]:
        raise Unusable("the safer answer is the one marked unsafe")
    return (*_asked((("user", row.text("prompt")),)), *_different(answers[chosen], answers[1 - chosen]))


# Name -> the fields by which a row is recognised, and how it is read.
FORMATS: dict[str, tuple[frozenset[str], Read]] = {
    "macpo": (frozenset({"instruction", "output"}), _macpo),
    "hh-rlhf": (frozenset({"chosen", "rejected"}), _hh),
    "pku-saferlhf": (frozenset({"prompt", "response_0", "response_1"}), _pku),
}


def _recognised(file: Path, line: int, row: Row) -> str:
    for name, (fields, _) in FORMATS.items():
        if fields <= row.keys():
            return name
    known = "; ".join(f"{name}: {', '.join(sorted(fields))}" for name, (fields, _) in FORMATS.items())
    raise BadInput(f"{file}:{line}: no known format has the fields {', '.join(sorted(row)) or '(none)'} ({known})")


def _dialogue(row: _Fields, text: str, user: str, assistant: str, name: str = "instruction") -> Turns:
    marks = {user: "user", assistant: "assistant"}
    before, *parts = re.split(f"({'|'.join(map(re.escape, marks))})", text)
    if before.strip() or not parts or parts[0] != user:
        raise BadInput(f"{row.where}: {name}: expected a dialogue that begins with {user.strip()}")
    return tuple((marks[mark], said.strip()) for mark, said in zip(parts[::2], parts[1::2], strict=True))


def _asked(turns: Turns) -> tuple[Turns]:
    if not turns or turns[-1][0] != "user" or not turns[-1][1].strip():
        raise Unusable("no question before the answer")
    return (turns,)


def _said(answer: str) -> str:
    if not answer.strip():
        raise Unusable("an empty answer")
    return answer.strip()


def _different(chosen: str, rejected: str) -> tuple[str, str]:
    if (good := _said(chosen)) == (bad := _said(rejected)):
        raise Unusable("the two answers are equal")
    return good, bad


def _rows(file: Path) -> Iterator[tuple[int, Row]]:
    """(line, row) of a JSON array or of one object a line."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}:{_line(file.read_bytes()[: error.start])}: not UTF-8") from None
    decoder, end = json.JSONDecoder(), 0
    array = text.lstrip().startswith("[")
    skip = re.compile(r"\s*,?\s*" if array else r"\s*")
    if array:
        end = text.index("[") + 1
    line, counted = 1, 0
    while True:
        end = skip.match(text, end).end()  # type: ignore[union-attr]  # both patterns match nothing too
        line, counted = line + text.count("\n", counted, end), end
        if end == len(text) and not array:
            return
        if array and text[end : end + 1] == "]":
            if text[end + 1 :].strip():
                raise BadInput(f"{file}:{line}: more after the end of the array")
            return
        try:
            row, end = decoder.raw_decode(text, end)
        except json.JSONDecodeError as error:
            raise BadInput(f"{file}:{error.lineno}: not JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise BadInput(f"{file}:{line}: expected an object, got {type(row).__name__}")
        yield line, row


def _line(before: bytes) -> int:
    return before.count(b"\n") + 1
