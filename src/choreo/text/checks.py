"""Checks of answers: what a right answer to a question has, decided by rules on its words alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:,\d{3})*(?:\.\d+)?")
_WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
_MARKED = re.compile(r"^\s*(?:[-*•–]\s*|\(?(?:\d+|[A-Za-z])[.):]\s+)\S", re.MULTILINE)
_BETWEEN = re.compile(r"\s*(?:\n|,?\s+and\s|,|;)\s*")


@dataclass(frozen=True, slots=True)
class Check:
    """What a right answer has. Every part that is given must hold; an empty part holds always.

    any, all, none: words or phrases of which the answer has at least one, each one, none; whole words, whatever case.
    number: the last number of the answer; where it has no digits, the last of the words zero to twelve.
    pattern: a regular expression that is found in the answer.
    items: how many items its list has: marked or numbered lines, else what commas, "and" and line breaks part.
    words: the fewest and the most words.
    """

    any: tuple[str, ...] = ()
    all: tuple[str, ...] = ()
    none: tuple[str, ...] = ()
    number: float | None = None
    pattern: str = ""
    items: int | None = None
    words: tuple[int, int] | None = None


def is_right(check: Check, answer: str) -> bool:
    """Whether `answer` has all that `check` asks for."""
    text = answer.strip()
    return all(
        (
            not check.any or any(_has(text, one) for one in check.any),
            all(_has(text, one) for one in check.all),
            not any(_has(text, one) for one in check.none),
            check.number is None or last_number(text) == check.number,
            not check.pattern or re.search(check.pattern, text) is not None,
            check.items is None or list_items(text) == check.items,
            check.words is None or check.words[0] <= len(text.split()) <= check.words[1],
        )
    )


def check_of(given: Any) -> Check:
    """The check that a row's field `check` describes: an object with the parts of `Check`.

    Raises ValueError, with what was expected, for anything else.
    """
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"expected an object with some of {', '.join(_PARTS)}, got {given!r:.60}")
    for name, value in given.items():
        if name not in _PARTS:
            raise ValueError(f"expected some of {', '.join(_PARTS)}, got {name!r:.40}")
        expected, fits = _PARTS[name]
        if not fits(value):
            raise ValueError(f"{name}: expected {expected}, got {value!r:.60}")
    parts: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return Check(**parts)


def last_number(text: str) -> float | None:
    """The last number in `text`, in digits, else as a word from zero to twelve; None without any."""
    if digits := _NUMBER.findall(text):
        return float(digits[-1].replace(",", "").replace("−", "-"))
    named = [word for word in re.findall(r"[a-z]+", text.casefold()) if word in _WORDS]
    return float(_WORDS.index(named[-1])) if named else None


def list_items(text: str) -> int:
    """How many items the list in `text` has."""
    if marked := _MARKED.findall(text):
        return len(marked)
    return len([part for part in _BETWEEN.split(text.strip()) if part.strip()])


def _has(text: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is not None


def _phrases(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) and one.strip() for one in value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_whole, value)) and value[0] <= value[1]


def _expression(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value) and re.compile(value) is not None
    except re.error:
        return False


# What each part is in a row: what is expected, and whether a value is that.
_PARTS = {
    "any": ("a list of texts", _phrases),
    "all": ("a list of texts", _phrases),
    "none": ("a list of texts", _phrases),
    "number": ("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool)),
    "pattern": ("a regular expression", _expression),
    "items": ("a whole number", _whole),
    "words": ("a list of two whole numbers, the fewest and the most", _range),
}
