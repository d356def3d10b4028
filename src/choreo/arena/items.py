"""What is shown to raters, and what they may say of it. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from choreo.types import Turns, Verdict

Mode = Literal["pairs", "labels"]

TIE, BOTH_BAD = "tie", "both bad"
UNSAFE, OVER_REFUSAL, FINE = "unsafe", "over-refusal", "fine"
CHOICES: Mapping[Mode, tuple[str, ...]] = {
    "pairs": ("a", "b", TIE, BOTH_BAD),
    "labels": (UNSAFE, OVER_REFUSAL, FINE),
}


@dataclass(frozen=True, slots=True)
class RatedAnswer:
    """An answer to be rated. system: who gave it, "" in an attention item. verdict: of the judge of its run, if any."""

    system: str
    text: str
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One question to a rater: which of two answers is better, or what one answer is.

    kind: of the prompt, "" where nobody said it. answers: a and b, or one answer.
    expected: of an attention item, the right choice; "" of all others. degenerate: what is expected there of this
    label, None where nothing is. earlier: the conversation before the prompt.
    """

    id: int
    prompt: str
    kind: str
    suite: str
    answers: tuple[RatedAnswer, ...]
    expected: str = ""
    degenerate: bool | None = None
    earlier: Turns = ()

    @property
    def turns(self) -> Turns:
        """The whole conversation, the prompt last."""
        return (*self.earlier, ("user", self.prompt))

    @property
    def attention(self) -> bool:
        return bool(self.expected)


@dataclass(frozen=True, slots=True)
class Rating:
    """What a rater said of an item, and stands by.

    choice: of CHOICES. degenerate: the other label of an answer; None in pairs. left: which answer of a pair was shown
    on the left, "a" or "b"; "" of one answer. at: when, ISO 8601 in UTC. id: its place in the log.
    """

    id: int
    at: str
    rater: str
    item: int
    choice: str
    degenerate: bool | None
    left: str


def fields_of(item: Item) -> dict[str, Any]:
    """An item, ready for JSON."""
    return asdict(item)


def item_of(fields: Mapping[str, Any]) -> Item:
    """The item of its JSON."""
    answers = tuple(
        RatedAnswer(one["system"], one["text"], Verdict(**one["verdict"]) if one["verdict"] else None)
        for one in fields["answers"]
    )
    earlier = tuple((role, text) for role, text in fields.get("earlier", ()))
    return Item(**{**fields, "answers": answers, "earlier": earlier})
