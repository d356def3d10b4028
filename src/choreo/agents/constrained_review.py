"""The grammar of a review for constrained decoding, in training, evaluation and serving.

A review is the canonical JSON of `text.feedback`. Its fixed text is forced, its labels are chosen, and its strings are
free: of the tokens that can stand in a JSON string, until one closes it. So every review parses. A string that has
come to its limit is closed by force. No answer is both unsafe and over-refusing, so after `"unsafe": true` the second
label is forced; a satisfied review has no feedback to write, so it ends with its second label.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from choreo.engine.constraint import ENDS, FORCED, Choices, Given
from choreo.errors import BadInput
from choreo.models.chat import Chat, Ids
from choreo.text.feedback import parse_feedback
from choreo.types import Feedback

OPENING, UNSAFE, OVERREFUSE, WORDS, CLOSING = (
    '{"reasoning": "',
    ', "unsafe":',
    ', "overrefuse":',
    ', "feedback": "',
    "}",
)
LABELS = {True: " true", False: " false"}

# What a string cannot hold without an escape, and what a made review has in its place.
_PLAIN = {ord('"'): "'", ord("\\"): "/"} | dict.fromkeys(range(32), " ")
_PLAIN_TEXT = re.compile(r'[^"\\\x00-\x1f]+')


class Place(NamedTuple):
    """Where a review is between two choices.

    given: the ids that lead here. field: what is chosen here. row: of the masks. after: the place that a chosen id
    leads to; any other id goes on with the string. closes: the id that closes a string by force; None of a label.
    most: ids that a string may have here. need: the most ids from here to the end where strings are closed at once.
    """

    given: Ids
    field: str = ""
    row: int = ENDS
    after: Mapping[int, int] = {}
    closes: int | None = None
    most: int = 0
    need: int = 0


class ReviewState(NamedTuple):
    """place: its number. left: how many ids may still come. chosen: how many the string has so far."""

    place: int
    left: int
    chosen: int


@dataclass(frozen=True, eq=False)
class ReviewGrammar:
    """A `Constraint` that holds turns to the JSON of a review.

    masks: see `Constraint`. places: a review begins at the last one. chat: of the model that writes.
    """

    chat: Chat
    masks: Tensor
    places: tuple[Place, ...]

    @classmethod
    def of(cls, chat: Chat, reasoning_tokens: int) -> ReviewGrammar:
        """The grammar for the models of `chat`. reasoning_tokens: the most ids of the reasoning; 0 leaves it empty.

        Raises BadInput where the tokenizer cannot spell the JSON.
        """
        return _built(chat, reasoning_tokens)

    @property
    def need(self) -> int:
        """The fewest ids that a limit has to allow a review, whatever its labels are."""
        return self.places[-1].need

    def start(self, limit: int) -> Given:
        """See `Constraint.start`."""
        if limit < self.need:
            raise ValueError(f"a review of this grammar takes {self.need} tokens or more, and may have {limit}")
        return self._enter(len(self.places) - 1, limit)

    def after(self, state: object, token: int) -> Given:
        """See `Constraint.after`."""
        assert isinstance(state, ReviewState)
        target = self.places[state.place].after.get(token)
        if target is not None:
            return self._enter(target, state.left - 1)
        return self._at(ReviewState(state.place, state.left - 1, state.chosen + 1), ())

    def encode(self, feedback: Feedback, limit: int) -> tuple[Ids, Choices]:
        """The ids of the review that says `feedback`, in at most `limit` ids, as constrained decoding would give them,
        and how each was chosen (`Choices`).

        Quotes, backslashes and control characters of its strings are replaced. Strings too long are cut, where decoding
        would close them. Feedback with both labels is written as unsafe, and words of a satisfied review are left out.
        """
        given = self.start(limit)
        ids, choices = [*given.ids], [FORCED] * len(given.ids)
        strings: dict[str, list[int]] = {}
        while given.row != ENDS:
            assert isinstance(given.state, ReviewState)
            place = self.places[given.state.place]
            value = getattr(feedback, place.field)
            if place.closes is None:
                token = [*place.after][0 if value else 1]
            else:
                left = strings.setdefault(place.field, self._spelled(value, place))
                token = left.pop(0) if left else place.closes
            ids.append(token)
            choices.append(given.row)
            given = self.after(given.state, token)
            ids += given.ids
            choices += [FORCED] * len(given.ids)
        return tuple(ids), tuple(choices)

    def _enter(self, number: int, left: int, before: Ids = ()) -> Given:
        place = self.places[number]
        ids = (*before, *place.given)
        if place.row == ENDS:
            return Given(ids, ENDS, None)
        return self._at(ReviewState(number, left - len(place.given), 0), ids)

    def _at(self, state: ReviewState, ids: Ids) -> Given:
        """What comes at `state`, after `ids`: a choice, or the end of a string that is as long as it may be."""
        place = self.places[state.place]
        if place.closes is not None:
            needs = [1 + self.places[target].need for target in place.after.values()]
            room = max(*needs, 2 + self.places[place.after[place.closes]].need)  # one id more, then the closing
            if state.chosen >= place.most or state.left < room:
                return self._enter(place.after[place.closes], state.left - 1, (*ids, place.closes))
        return Given(ids, place.row, state)

    def _spelled(self, text: str, place: Place) -> list[int]:
        """The ids of a string's text that may stand in it."""
        allowed = self.masks[place.row]
        ids = self.chat.encode(text.translate(_PLAIN))
        return [i for i in ids if i < len(allowed) and allowed[i] and i not in place.after]


class _Builder:
    """Places and masks of a grammar while it is built, from the end of a review to its beginning."""

    def __init__(self, chat: Chat):
        self.chat, self.texts = chat, _texts(chat)
        self.content = [i for i, text in self.texts.items() if _PLAIN_TEXT.fullmatch(text)]
        quote = next((i for i, text in self.texts.items() if text == '"'), None)
        if quote is None:
            raise BadInput("its tokenizer has no token for a quote, which constrained reviews need")
        self.quote = quote
        self.places: list[Place] = []
        self.masks: list[list[int]] = []

    def add(self, place: Place) -> int:
        """The number of a place, whose `need` is filled in."""
        ends = [self.places[target].need for target in place.after.values()]
        if place.closes is not None:
            ends = [self.places[place.after[place.closes]].need]
        self.places.append(place._replace(need=len(place.given) + (1 + max(ends) if ends else 0)))
        return len(self.places) - 1

    def end(self, text: str) -> int:
        """The place where a turn ends with `text`."""
        return self.add(Place((*self.chat.encode(text), self.chat.end_id)))

    def label(self, field: str, before: str, true: int, false: int) -> int:
        """The place after `before` where a label is chosen. true, false: the places after both of its values."""
        values = [self.chat.encode(LABELS[value]) for value in (True, False)]
        common = next(n for n, (a, b) in enumerate(zip(*values, strict=False)) if a != b)
        after = {}
        for ids, target in zip(values, (true, false), strict=True):  # what is left of a value leads to the next place
            place = self.places[target]
            after[ids[common]] = self.add(place._replace(given=(*ids[common + 1 :], *place.given)))
        given = (*self.chat.encode(before), *values[0][:common])
        return self.add(Place(given, field, self._row(sorted(after)), after))

    def string(self, field: str, before: str, following: str, then: Callable[[str], int], most: int) -> int:
        """The place after `before` where a string begins. following: the text behind its closing quote. then: gives the
        place after a token that closes the string, from what the token leaves of that text."""
        closing = self._closing(following)
        targets = {rest: then(rest) for rest in dict.fromkeys(closing.values())}
        after = {i: targets[rest] for i, rest in closing.items()}
        row = self._row(sorted({*self.content, *after}))
        return self.add(Place(self.chat.encode(before), field, row, after, self.quote, most))

    def _row(self, ids: list[int]) -> int:
        if ids not in self.masks:
            self.masks.append(ids)
        return self.masks.index(ids)

    def _closing(self, following: str) -> dict[int, str]:
        """The ids that close a string, such as those of `"`, `."` and `",`, each with what it leaves of `following`."""
        found = {}
        for i, text in self.texts.items():
            before, quote, behind = text.partition('"')
            if quote and (not before or _PLAIN_TEXT.fullmatch(before)) and following.startswith(behind):
                found[i] = following[len(behind) :]
        return found


def _built(chat: Chat, reasoning_tokens: int) -> ReviewGrammar:
    build = _Builder(chat)
    satisfied = build.end(f'{WORDS}"{CLOSING}')
    words = build.string("feedback", WORDS, CLOSING, build.end, 2**31)
    given = chat.encode(f"{OVERREFUSE}{LABELS[False]}{WORDS}")
    unsafe = build.add(build.places[words]._replace(given=given))
    safe = build.label("overrefuse", OVERREFUSE, words, satisfied)
    if reasoning_tokens:
        build.string(
            "reasoning", OPENING, UNSAFE, lambda rest: build.label("unsafe", rest, unsafe, safe), reasoning_tokens
        )
    else:
        build.label("unsafe", f'{OPENING}"{UNSAFE}', unsafe, safe)
    masks = torch.zeros(len(build.masks), max(build.texts) + 1, dtype=torch.bool)
    for row, ids in enumerate(build.masks):
        masks[row, ids] = True
    grammar = ReviewGrammar(chat, masks, tuple(build.places))
    for feedback in (Feedback("", False, False, ""), Feedback("", True, False, "a"), Feedback("", False, True, "a")):
        if parse_feedback(chat.decode_whole(grammar.encode(feedback, grammar.need + 8)[0])) != feedback:
            raise BadInput("its tokenizer cannot spell the JSON of a review, as constrained reviews need")
    return grammar


def _texts(chat: Chat) -> dict[int, str]:
    """The text of every id that may stand in the middle of a content: no turn marker, no token that was added.

    An id of some bytes of a letter has U+FFFD for its text.
    """
    tokenizer = chat.tokenizer
    left_out = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids, *chat.markers}
    ids = sorted({*tokenizer.get_vocab().values()} - left_out)
    anchor = chat.encode("a")[-1]  # some tokenizers drop the space of a first token
    decode = tokenizer.backend_tokenizer.decode_batch
    before = len(decode([[anchor]])[0])
    found = {i: text[before:] for i, text in zip(ids, decode([[anchor, i] for i in ids]), strict=True)}
    # Where bytes have tokens of their own, one that closes a string could be lost behind half of a letter.
    half = next((i for i, text in found.items() if "\ufffd" in text), None)
    if half is not None:
        closing = {i: text for i, text in found.items() if '"' in text}
        lost = {i for i, text in closing.items() if not decode([[half, i]])[0].endswith(text)}
        found = {i: text for i, text in found.items() if i not in lost}
    return found
