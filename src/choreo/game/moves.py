"""The rules of the game, as pure functions of a game in play (WaltzRL, section 3).

A game in play is an `Episode` that is not over yet. `turn_of` says whose turn it is and when the game ends;
`answered` and `reviewed` give the game with one more turn; `read_review` says what of a review may be applied. What an
agent sees when its turn comes is `agents.base.state_of`. Every driver makes these moves: `play` for a batch of games,
the server's session for one game at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, NamedTuple

from choreo.text.feedback import parse_feedback, read_feedback
from choreo.types import CONVERSATION, FEEDBACK, Episode, Feedback, S


class Review(NamedTuple, Generic[S]):
    """One turn of a reviewer on an answer, and what was read in it (None: nothing that may be applied)."""

    turn: S
    feedback: Feedback | None


Reviewer = Callable[[Sequence[Episode[S]]], list[Review[S]]]
"""Reviews the last answer of every game given, in order."""


def turn_of(game: Episode[Any], rounds: int, always: bool = False) -> str | None:
    """The role whose turn it is, or None where the game is over.

    A game ends when a review is satisfied (both labels false), when a review does not parse (nothing of it is
    applied), or when the answer after `rounds` (T_max) reviews is given. 0 rounds play without a reviewer.

    always: a satisfied review asks for a revision too. A review that does not parse has no words and never does.
    """
    if len(game.answers) > len(game.reviews):
        return FEEDBACK if len(game.reviews) < rounds else None
    if not game.answers:
        return CONVERSATION
    last = game.feedback[-1]
    return CONVERSATION if last is not None and (always or not last.satisfied) else None


def answered(game: Episode[S], turn: S) -> Episode[S]:
    """The game with one more answer."""
    return replace(game, answers=(*game.answers, turn))


def reviewed(game: Episode[S], review: Review[S]) -> Episode[S]:
    """The game with one more review."""
    return replace(game, reviews=(*game.reviews, review.turn), feedback=(*game.feedback, review.feedback))


def read_review(game: Episode[Any], turn: S, *, trained: bool) -> Review[S]:
    """A review of the last answer of `game`, read.

    trained: its writer was trained to write the JSON of a review, so it is read strictly. Any other model is read
    leniently, and a turn of it that failed says nothing.
    """
    if trained:
        return Review(turn, parse_feedback(turn.text))
    if turn.failure:
        return Review(turn, None)
    material = [*(text for _, text in game.prompt.turns), game.answers[-1].text]
    return Review(turn, read_feedback(turn.text, material, turn.finished))
