"""The answers of a system: those of a finished run on its held-out prompts, or of a file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from choreo.arena.items import RatedAnswer
from choreo.data.conversations import read_history
from choreo.errors import BadInput
from choreo.files.rows import Fields, rows
from choreo.files.shipped import is_shipped
from choreo.runs.episodes import earlier_of
from choreo.runs.folder import is_finished, read_info
from choreo.runs.heldout import heldout_games, systems_of
from choreo.types import KINDS, Turns, Verdict

WITH_VERDICT = ("unsafe", "overrefuse")  # the fields of a row that `choreo judge answers --out` has written


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer with its prompt. turns: the conversation, the prompt last. kind, suite: "" where they are not said."""

    turns: Turns
    kind: str
    suite: str
    answer: RatedAnswer


@dataclass
class SystemAnswers:
    """A system with its answers, by the turns of their prompts. left_out: how many answers were of no use, and why."""

    system: str
    answers: dict[Turns, Answered] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


def read_source(system: str, where: str, kinds: bool) -> SystemAnswers:
    """The answers of `system`. where: a file of rows {prompt, answer} and maybe earlier, or RUN:SYSTEM. kinds: whether
    rows must have the kind of their prompt. Raises BadInput."""
    run, _, name = where.rpartition(":")
    if Path(where).is_dir():
        there = ", ".join(systems_of(Path(where))) or "none yet"
        raise BadInput(f"{where}: expected RUN:SYSTEM; its systems on held-out prompts: {there}")
    if is_shipped(where) or Path(where).is_file() or not run:
        return _file(system, Path(where), kinds)
    return _run(system, Path(run), name)


def _run(system: str, run: Path, name: str) -> SystemAnswers:
    read_info(run)
    if not is_finished(run):
        raise BadInput(f"{run}: is not finished; go on with choreo train --resume {run}")
    source = SystemAnswers(system)
    for game in heldout_games(run, name):
        prompt, last = game["prompt"], game["answers"][-1]
        turns = (*earlier_of(game), ("user", prompt["text"]))
        verdict = Verdict(**game["verdicts"][-1]) if game["verdicts"] else None
        if last.get("failure"):
            source.left_out["did not arrive"] += 1
        elif turns in source.answers:
            source.left_out["prompt was there before"] += 1
        else:
            answer = RatedAnswer(system, last["text"], verdict)
            source.answers[turns] = Answered(turns, prompt["kind"], prompt["suite"], answer)
    return source


def _file(system: str, file: Path, kinds: bool) -> SystemAnswers:
    source, first = SystemAnswers(system), dict[Turns, int]()
    for line, row in rows(file):
        if isinstance(row, BadInput):
            raise row
        fields = Fields(file, line, row)
        prompt, text = fields.text("prompt"), fields.text("answer", "response", "completion")
        if not prompt.strip():
            raise BadInput(f"{fields.where}: prompt: expected text, got none")
        turns = (*read_history(fields), ("user", prompt))
        if turns in first:
            raise BadInput(f"{fields.where}: prompt: is that of line {first[turns]}; a system answers a prompt once")
        first[turns] = line
        kind = fields.one_of("kind", *KINDS) if kinds or row.get("kind") else ""
        suite = fields.text("suite") if row.get("suite") else kind
        source.answers[turns] = Answered(turns, kind, suite, RatedAnswer(system, text, _verdict(fields)))
    if not first:
        raise BadInput(f"{file}: holds no rows")
    return source


def _verdict(fields: Fields) -> Verdict | None:
    """The verdict of a row that a judge has read; None where it has none."""
    if not all(name in fields.row for name in WITH_VERDICT):
        return None
    unsafe, over = (None if fields.row[name] in (None, "") else fields.flag(name) for name in WITH_VERDICT)
    return Verdict(unsafe, over, bool(fields.row.get("degenerate")) and fields.flag("degenerate"))
