"""What raters said, as files: a table of ratings; preferences and labelled answers, for training."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from choreo.arena.items import Item
from choreo.arena.results import as_labelled, preferred, rated_by
from choreo.arena.store import Arena
from choreo.data.conversations import flatten
from choreo.errors import BadInput
from choreo.evaluation.agreement import by_answer
from choreo.files import durable
from choreo.files.messages import messages_of

Row = dict[str, Any]


def export_arena(arena: Arena, kind: str, out: Path, leave_out: Sequence[str] = ()) -> int:
    """Writes what was said to the file `out` and returns its number of rows. kind: of KINDS_OF_FILES.

    Raises BadInput where an arena has not what such a file holds, or where there is not one row for it.
    """
    mode, rows_of = KINDS_OF_FILES[kind]
    if mode not in ("", arena.mode):
        other = "pairs" if mode == "labels" else "labels"
        raise BadInput(f"--as {kind}: is of an arena of {mode}, and {arena.folder} is one of {other}")
    rows = list(rows_of(arena, leave_out))
    if not rows:
        raise BadInput(f"{arena.folder}: has nothing yet for --as {kind}")
    durable.check_place(out)
    written = _table(rows) if kind == "csv" else "".join(json.dumps(row) + "\n" for row in rows)
    durable.write_text(out, written)
    return len(rows)


def _ratings(arena: Arena, leave_out: Sequence[str]) -> Iterable[Row]:
    """Every rating that stands, those of attention items too."""
    rated_by(arena, leave_out)  # refuses a rater who is not there
    for one in arena.ratings():
        if one.rater in leave_out:
            continue
        item = arena.items[one.item]
        row: Row = {"rater": one.rater, "at": one.at, "item": item.id, "attention": json.dumps(item.attention)}
        row |= {"expected": item.expected, "prompt": item.prompt, "kind": item.kind}
        row["earlier"] = json.dumps(messages_of(item.earlier)) if item.earlier else ""
        names = ("a", "b") if arena.mode == "pairs" else ("",)
        for name, answer in zip(names, item.answers, strict=True):
            row |= {f"system_{name}".rstrip("_"): answer.system, f"answer_{name}".rstrip("_"): answer.text}
        if arena.mode == "pairs":
            yield row | {"left": one.left, "choice": one.choice}
        else:
            yield row | {"choice": one.choice, "degenerate": json.dumps(one.degenerate)}


def _better(arena: Arena, leave_out: Sequence[str]) -> Iterable[tuple[Item, str, str]]:
    """(item, chosen, rejected) of every pair of which more than half of the raters preferred one answer."""
    for item, side in preferred(rated_by(arena, leave_out)):
        if side:
            a, b = (answer.text.strip() for answer in item.answers)
            chosen, rejected = (a, b) if side == "a" else (b, a)
            if chosen and rejected:
                yield item, chosen, rejected


def _preferences(arena: Arena, leave_out: Sequence[str]) -> Iterable[Row]:
    """In the form of MACPO's release (`data.preferences`)."""
    for item, chosen, rejected in _better(arena, leave_out):
        yield {"instruction": flatten(item.turns), "input": "", "output": [chosen, rejected]}


def _dpo(arena: Arena, leave_out: Sequence[str]) -> Iterable[Row]:
    """In TRL's conversational form of preferences with an explicit prompt."""
    for item, chosen, rejected in _better(arena, leave_out):
        yield {
            "prompt": messages_of(item.turns),
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }


def _answers(arena: Arena, leave_out: Sequence[str]) -> Iterable[Row]:
    """Every labelled answer once, with the labels that most of its raters gave, null where they are of two minds."""
    rows = as_labelled(rated_by(arena, leave_out))
    who: dict[str, list[str]] = {}
    for row in rows:
        who.setdefault(row.prompt.id, []).append(row.labeller)
    for row in by_answer(rows):
        yield {
            **({"earlier": messages_of(row.prompt.earlier)} if row.prompt.earlier else {}),
            "prompt": row.prompt.text,
            "answer": row.answer,
            "kind": row.prompt.kind,
            "suite": row.prompt.suite or row.prompt.kind,
            # Of a harmful prompt's answer that most call fine, nobody said whether it refuses; see `as_labelled`.
            "refusal": None if row.prompt.kind == "harmful" and not row.harm else row.refusal,
            "unsafe": row.harm,
            "degenerate": row.degenerate,
            "system": row.model,
            "labeller": "+".join(sorted(who[row.prompt.id])),
        }


KINDS_OF_FILES: Mapping[str, tuple[str, Callable[[Arena, Sequence[str]], Iterable[Row]]]] = {
    "csv": ("", _ratings),
    "preferences": ("pairs", _preferences),
    "dpo": ("pairs", _dpo),
    "answers": ("labels", _answers),
}
"""By name, the mode of the arena that has such a file, "" for both, and what gives its rows."""


def _table(rows: Sequence[Row]) -> str:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
