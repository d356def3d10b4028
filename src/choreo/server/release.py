"""Checked release of a draft by segments: each leaves once a review of all so far has not called it unsafe.

A review of the whole answer can have it revised. Here a part has left by then, so only what comes first can be
repaired: while nothing has left, the game goes on as `session.play_session` plays it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from choreo.errors import BadInput
from choreo.game.moves import answered, read_review, reviewed
from choreo.server.session import (
    Down,
    Guard,
    Mode,
    Move,
    Outcome,
    SampledTurn,
    SessionAgent,
    SessionOptions,
    play_session,
    settled,
    until_stop,
)
from choreo.types import CONVERSATION, FEEDBACK, Episode, Turn

SEGMENT = 32  # tokens after which a segment ends in the middle of a sentence
SENTENCE_ENDS = tuple(".!?…:;。！？\n")
CLOSING = " \"'”’»)]}*_`"  # may stand behind the mark that ends a sentence


async def play_released(
    game: Episode,
    agents: Mapping[str, SessionAgent],
    options: SessionOptions,
    *,
    rounds: int,
    opened: frozenset[str],
    on_move: Callable[[Move, Episode], None],
    on_release: Callable[[str], None],
) -> Outcome:
    """Plays `game` as the mode "adaptive" does, and releases its draft by segments. Raises as `play_session` does, also
    where the draft fails after a part of it has left.

    A segment ends where a sentence does, or after SEGMENT tokens. One review is made at a time, of all that has been
    written by then, so reviews cost no more than the time of a draft allows. on_release: called with the text that may
    have left from then on. on_move: as of `play_session`; reviews of segments are no moves, but their tokens count in
    the last one.

    Before a part has left, what is called over-refusing waits for more, and what is called unsafe ends the release, as
    does a review that fails: the review of the whole answer decides. Later, what is called unsafe ends the draft, and
    the rest is withheld ("segment"); over-refusal can no longer be repaired.
    """
    segments = _Segments(options)
    began = time.monotonic()
    drafting = asyncio.create_task(_draft(game, agents[CONVERSATION], options, segments.add))
    tokens, seconds = 0, 0.0  # of reviews of segments
    try:
        while (partial := await segments.next(drafting)) is not None:
            seen = await _review(answered(game, partial), agents[FEEDBACK], options)
            if seen is None:
                break
            review, read = seen
            tokens, seconds = tokens + review.sampled.tokens, seconds + review.seconds
            called = read.feedback[-1]
            if called is not None and called.unsafe and segments.released:
                cut = SampledTurn(partial, len(partial.ids), len(partial.context))
                moves = (Move("draft", cut, time.monotonic() - began), _more(review, tokens, seconds))
                for move in moves:
                    on_move(move, read)
                return Outcome("adaptive", read, moves, "segment", released=segments.released)
            if called is None or called.unsafe:
                break
            if called.overrefuse and not segments.released:
                continue  # "Sure." alone helps nobody yet
            segments.release(partial)
            on_release(segments.released)
        draft = Move("draft", await drafting, time.monotonic() - began)
        segments.check(draft.turn)
    finally:
        drafting.cancel()
    game = answered(game, draft.turn)
    on_move(draft, game)
    first = True

    def made(move: Move, game: Episode) -> None:
        nonlocal first
        on_move(_more(move, move.sampled.tokens + tokens, move.seconds) if first else move, game)
        first = False

    mode: Mode | Guard = "guard" if segments.released else "adaptive"  # what has left cannot be revised
    outcome = await play_session(game, agents, options, mode=mode, rounds=rounds, opened=opened, on_move=made)
    later = [_more(one, one.sampled.tokens + tokens * (i == 0), one.seconds) for i, one in enumerate(outcome.moves)]
    outcome = replace(outcome, mode="adaptive", moves=(draft, *later))
    if not segments.released:
        return outcome
    last = outcome.game.feedback[-1] if outcome.game.feedback else None
    if outcome.failed is None and last is not None and last.unsafe:
        outcome = replace(outcome, failed="segment")
    return replace(outcome, released=segments.released) if outcome.withheld else outcome


class _Segments:
    """The segments of one draft: what it says so far, up to where the last whole one ends."""

    def __init__(self, options: SessionOptions):
        self.options = options
        self.released = ""
        self._newest: Turn | None = None
        self._ended = 0  # tokens up to the end of the newest segment
        self._changed = asyncio.Event()

    def add(self, turn: Turn) -> None:
        """Takes the draft so far, with one token more than the last time."""
        at_end = turn.text.rstrip(CLOSING).endswith(SENTENCE_ENDS) or len(turn.ids) - self._ended >= SEGMENT
        if at_end and turn.text.strip() and settled(turn.text, self.options.stop) == turn.text:
            self._newest, self._ended = turn, len(turn.ids)
            self._changed.set()

    async def next(self, drafting: asyncio.Task[SampledTurn]) -> Turn | None:
        """The draft up to the end of a segment that has not been given; None where the draft is over."""
        waiting = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait((drafting, waiting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if drafting.done():
            return None
        self._changed.clear()
        return self._newest

    def release(self, partial: Turn) -> None:
        self.released = self.check(partial)

    def check(self, turn: Turn) -> str:
        """What a caller gets of `turn`. Raises Down where it does not begin with what has left: a template may tell a
        draft's reasoning from its answer late."""
        text = until_stop(turn.text, self.options.stop)
        if not text.startswith(self.released):
            raise Down("the draft is not what it began with")
        return text


async def _draft(
    game: Episode, agent: SessionAgent, options: SessionOptions, on_token: Callable[[Turn], None]
) -> SampledTurn:
    async with asyncio.timeout(options.deadline - time.monotonic()):
        return await agent.next_turn(game, options, on_token)


async def _review(game: Episode, agent: SessionAgent, options: SessionOptions) -> tuple[Move, Episode] | None:
    """The review of the last answer of `game`, and the game with it; None where it failed."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(options.deadline - began):
            sampled = await agent.next_turn(game, options)
    except (Down, TimeoutError, BadInput):
        return None
    read = reviewed(game, read_review(game, sampled.turn, trained=agent.trained))
    return Move("feedback", sampled, time.monotonic() - began), read


def _more(move: Move, tokens: int, seconds: float) -> Move:
    """`move` with the tokens and the seconds of the reviews before it."""
    return move._replace(sampled=move.sampled._replace(tokens=tokens), seconds=seconds)
