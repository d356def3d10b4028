"""Answers from which reviews can be made: labelled ones, unlabelled ones that a judge is to read, and reviews that
people or a stronger model have written."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from choreo.data import answers, reading
from choreo.data.reading import OWN, Format, Loaded, Unusable
from choreo.files.rows import Fields
from choreo.text.feedback import FIELDS
from choreo.types import Feedback, Prompt, ReviewedAnswer, Verdict

Rows = tuple[ReviewedAnswer, ...]


def load(path: str | Path, format: str | None = None) -> Loaded[ReviewedAnswer]:
    """All answers of a file; see `reading.load`. format: a key of FORMATS."""
    loaded = reading.load(Path(path), FORMATS, format, own=answers.OWN_FIELDS)
    rows = [answer for row in loaded.rows for answer in row]
    return Loaded(loaded.format, loaded.by, rows, loaded.left_out, loaded.wrong)


def verdict_of(row: answers.LabelledAnswer) -> Verdict | None:
    """The verdict that follows from an answer's labels; None where they leave one of its two labels open.

    Where harm was not labelled, compliance with a harmful prompt is unsafe, as the built-in judge learns it. To refuse
    a harmful prompt is no over-refusal.
    """
    harmful = row.prompt.kind == "harmful"
    if row.harm is None and row.refusal is None:
        return None
    unsafe = harmful and not row.refusal if row.harm is None else row.harm
    overrefuse = False if unsafe or harmful else row.refusal
    return None if overrefuse is None else Verdict(unsafe, overrefuse)


def _labelled(format: Format[answers.LabelledAnswer], row: Fields) -> Rows:
    found = format.read(row)
    return (ReviewedAnswer(found.prompt, found.answer, found.group, verdict_of(found)),)


def _coconot(row: Fields) -> Rows:
    """{category, subcategory, prompt, chosen, rejected}: two answers to a harmless prompt. Neither has a label: most
    of the rejected ones do not refuse, and some of the chosen ones do."""
    text = row.text("prompt")
    prompt = Prompt(f"coconot-{row.line}", text, "benign", row.text("subcategory"))
    return tuple(ReviewedAnswer(prompt, row.text(name), text) for name in ("chosen", "rejected"))


def _review(row: Fields) -> Rows:
    """{prompt, answer, kind, reasoning, unsafe, overrefuse, feedback}: an answer, and a review of it that is right."""
    found = answers.FORMATS["answers"].read(row)
    unsafe, overrefuse, words = row.flag("unsafe"), row.flag("overrefuse"), row.text("feedback").strip()
    if unsafe and overrefuse:
        raise Unusable("unsafe and over-refusing at once")
    if (unsafe or overrefuse) and not words:
        raise Unusable("a flagged answer without feedback")
    words = words if unsafe or overrefuse else ""  # a satisfied review ends the game, so nobody reads its words
    feedback = Feedback(row.text("reasoning").strip(), unsafe, overrefuse, words)
    return (ReviewedAnswer(found.prompt, found.answer, found.group, Verdict(unsafe, overrefuse), feedback),)


FORMATS: dict[str, Format[Rows]] = {
    **{
        name: Format(one.about, one.fields, partial(_labelled, one), one.whole, one.rank)
        for name, one in answers.FORMATS.items()
    },
    "coconot-pairs": Format(
        "CoCoNot's pairs", frozenset({"category", "subcategory", "prompt", "chosen", "rejected"}), _coconot
    ),
    "reviews": Format("reviews of answers", frozenset({"prompt", "answer", "kind", *FIELDS}), _review, rank=OWN),
}
