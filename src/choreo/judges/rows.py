"""Labelled answers in two published schemas: XSTest's human labels and JailbreakBench's attack artifacts.

A file is one JSON object a line; its schema is known by the first row's fields. A row that does not fit is bad input.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from choreo.errors import BadInput
from choreo.types import Prompt

Row = dict[str, Any]
LABELS = {"1_full_compliance": False, "2_full_refusal": True, "3_partial_refusal": True}


@dataclass(frozen=True, slots=True)
class Labelled:
    """An answer and what is known of it. refusal: full or partial, None where no one said; harm likewise.

    group: rows of one group (one question, one behaviour) may not be on both sides of a split.
    source: the data set; method and model: what attacked and what answered ("" where there is no attack).
    """

    prompt: Prompt
    answer: str
    refusal: bool | None
    harm: bool | None
    group: str
    source: str
    method: str
    model: str


def load(path: str | Path) -> list[Labelled]:
    """All rows of a file. Raises BadInput naming file, line, field and what was expected."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{file}: expected UTF-8 text") from None
    rows: list[Labelled] = []
    schema: str | None = None
    for line, told in enumerate(text.split("\n"), 1):
        if not told.strip():
            continue
        where = f"{file}:{line}"
        try:
            row = json.loads(told)
        except json.JSONDecodeError as error:
            raise BadInput(f"{where}: expected one JSON object a line ({error.msg})") from None
        if not isinstance(row, dict):
            raise BadInput(f"{where}: expected an object, got {type(row).__name__}")
        schema = schema or _recognised(where, row)
        rows.append(SCHEMAS[schema][1](where, line, row))
    if not rows:
        raise BadInput(f"{file}: holds no rows")
    return rows


def _xstest(where: str, line: int, row: Row) -> Labelled:
    """{prompt, type, completion, final_label, model}. Types that start with contrast_ are the unsafe prompts."""
    asked, answer = _text(where, row, "prompt"), _text(where, row, "completion")
    kind, label = _text(where, row, "type"), _text(where, row, "final_label")
    if label not in LABELS:
        raise BadInput(f"{where}: final_label: expected one of {', '.join(LABELS)}, got {label[:40]!r}")
    prompt = Prompt(f"xstest-{line}", asked, "harmful" if kind.startswith("contrast_") else "benign", kind)
    return Labelled(prompt, answer, LABELS[label], None, asked, "xstest", "", _text(where, row, "model"))


def _jailbreakbench(where: str, line: int, row: Row) -> Labelled:
    """{goal, prompt, response, jailbroken, method, model}."""
    asked, answer = _text(where, row, "prompt"), _text(where, row, "response")
    method, goal = _text(where, row, "method"), _text(where, row, "goal")
    if not isinstance(harm := row.get("jailbroken"), bool):
        raise _wrong(where, row, "jailbroken", "true or false")
    prompt = Prompt(f"jailbreakbench-{line}", asked, "harmful", method)
    return Labelled(prompt, answer, None, harm, goal, "jailbreakbench", method, _text(where, row, "model"))


# Name -> the fields by which a file is recognised, and how a row is read.
SCHEMAS: dict[str, tuple[frozenset[str], Callable[[str, int, Row], Labelled]]] = {
    "xstest": (frozenset({"completion", "final_label"}), _xstest),
    "jailbreakbench": (frozenset({"response", "jailbroken"}), _jailbreakbench),
}


def _recognised(where: str, row: Row) -> str:
    for name, (fields, _) in SCHEMAS.items():
        if fields <= row.keys():
            return name
    known = "; ".join(f"{name}: {', '.join(sorted(fields))}" for name, (fields, _) in SCHEMAS.items())
    raise BadInput(f"{where}: no known schema has the fields {', '.join(sorted(row)) or '(none)'} ({known})")


def _text(where: str, row: Row, name: str) -> str:
    if not isinstance(value := row.get(name), str):
        raise _wrong(where, row, name, "text")
    return value


def _wrong(where: str, row: Row, name: str, expected: str) -> BadInput:
    got = "nothing" if name not in row else type(row[name]).__name__
    return BadInput(f"{where}: {name}: expected {expected}, got {got}")
