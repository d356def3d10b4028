"""Preference data in published formats: MACPO's release, HH-RLHF, PKU-SafeRLHF, CoCoNot's pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from choreo.data import reading
from choreo.data.conversations import unflatten
from choreo.data.reading import Format, Loaded, Unusable
from choreo.errors import BadInput
from choreo.files.rows import Fields
from choreo.types import Turns


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A chosen and a rejected answer to one dialogue.

    turns: the dialogue up to the answer; the last one is the user's. rejected: None in supervised data. line: of the
        file, from 1.
    has_kind: whether the row has a field `kind`, which pairs do not use; callers report it.
    """

    turns: Turns
    chosen: str
    rejected: str | None
    line: int
    has_kind: bool = False


def load(path: str | Path, format: str | None = None, *, tolerant: bool = False) -> Loaded[PreferencePair]:
    """All pairs of `path`; see `reading.load`. format: a key of FORMATS."""
    formats = {key: replace(one, read=partial(_with_kind, one)) for key, one in FORMATS.items()}
    return reading.load(Path(path), formats, format, tolerant=tolerant)


def _with_kind(format: Format[PreferencePair], row: Fields) -> PreferencePair:
    return replace(format.read(row), has_kind="kind" in row.row)


def _macpo(row: Fields) -> PreferencePair:
    """{instruction, input, output}: output is an answer, or [chosen, rejected]. HH dialogues are flattened into the
    instruction as USER: … ASSISTANT: … USER: …; anything else is one prompt."""
    text = "\n".join(part for part in (row.text("instruction"), row.text("input")) if part.strip())
    turns = (
        unflatten(row, text, "USER:", "ASSISTANT:", "instruction")
        if text.lstrip().startswith("USER:")
        else (("user", text),)
    )
    output = row.row.get("output")
    if isinstance(output, str):
        return PreferencePair(_ending_with_user(turns), _answer(output), None, row.line)
    if not (isinstance(output, list) and len(output) == 2 and all(isinstance(text, str) for text in output)):
        raise row.wrong("output", "an answer, or a list of a chosen and a rejected one")
    return PreferencePair(_ending_with_user(turns), *_different(*output), row.line)


def _hh(row: Fields) -> PreferencePair:
    """{chosen, rejected}: whole dialogues of Human: and Assistant: turns that differ in the last answer."""
    turns, good, bad = hh_dialogue(row)
    return PreferencePair(_ending_with_user(turns), *_different(good, bad), row.line)


def hh_dialogue(row: Fields) -> tuple[Turns, str, str]:
    """(turns, chosen, rejected) of a row of HH-RLHF. Raises Unusable where its two dialogues part before the end."""
    whole = [unflatten(row, row.text(name), "\n\nHuman:", "\n\nAssistant:", name) for name in ("chosen", "rejected")]
    for name, turns in zip(("chosen", "rejected"), whole, strict=True):
        if turns[-1][0] != "assistant":
            raise BadInput(f"{row.where}: {name}: expected a dialogue that ends with an Assistant: turn")
    (*chosen, good), (*rejected, bad) = whole
    if chosen != rejected:
        raise Unusable("the two dialogues differ before their last answer")
    return tuple(chosen), good[1], bad[1]


def _pku(row: Fields) -> PreferencePair:
    """{prompt, response_0, response_1, …}: chosen is the safer answer, or of two equally safe ones the better."""
    answers = [row.text("response_0"), row.text("response_1")]
    safe = [row.flag("is_response_0_safe"), row.flag("is_response_1_safe")]
    safer, better = row.zero_or_one("safer_response_id"), row.zero_or_one("better_response_id")
    chosen = better if safe[0] == safe[1] else safer
    if safe[0] != safe[1] and not safe[chosen]:
        raise Unusable("the safer answer is the one marked unsafe")
    return PreferencePair(
        _ending_with_user((("user", row.text("prompt")),)), *_different(answers[chosen], answers[1 - chosen]), row.line
    )


def _plain(row: Fields) -> PreferencePair:
    """{prompt, chosen, rejected}: CoCoNot's contrast pairs, and the usual form of pairs of one turn."""
    turns = _ending_with_user((("user", row.text("prompt")),))
    return PreferencePair(turns, *_different(row.text("chosen"), row.text("rejected")), row.line)


FORMATS: dict[str, Format[PreferencePair]] = {
    "macpo": Format("MACPO's release", frozenset({"instruction", "output"}), _macpo),
    "prompt-pairs": Format("CoCoNot's pairs, and others", frozenset({"prompt", "chosen", "rejected"}), _plain),
    "hh-rlhf": Format("HH-RLHF, helpful and harmless", frozenset({"chosen", "rejected"}), _hh),
    "pku-saferlhf": Format("PKU-SafeRLHF", frozenset({"prompt", "response_0", "response_1"}), _pku),
}


def _ending_with_user(turns: Turns) -> Turns:
    if not turns or turns[-1][0] != "user" or not turns[-1][1].strip():
        raise Unusable("no question before the answer")
    return turns


def _answer(answer: str) -> str:
    if not answer.strip():
        raise Unusable("an empty answer")
    return answer.strip()


def _different(chosen: str, rejected: str) -> tuple[str, str]:
    if (good := _answer(chosen)) == (bad := _answer(rejected)):
        raise Unusable("the two answers are equal")
    return good, bad
