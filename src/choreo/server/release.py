"""Checked release of a draft by segments: each leaves once a review of all so far has not called it unsafe.

A review of the whole answer can have it revised. Here a part has left by then, so only what comes first can be
repaired: while nothing has left, the game goes on as `session.play_session` plays it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from choreo.errors import BadInput
from choreo.game.moves import Review, answered, read_review, reviewed
from choreo.server.session import (
    Down,
    FailedStage,
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


class _ReadSegment(NamedTuple):
    """A draft up to the end of a segment, and its review."""

    answer: Turn
    move: Move
    review: Review[Turn]


async def play_released(
    game: Episode,
    agents: Mapping[str, SessionAgent],
    options: SessionOptions,
    *,
    rounds: int,
    opened: frozenset[str],
    on_move: Callable[[Move, Episode], None],
    on_release: Callable[[str], None],
    on_left: Callable[[Outcome], None],
) -> Outcome:
    """Plays `game` as the mode "adaptive" does, and releases its draft by segments. Raises as `play_session` does, also
    where the draft fails after a part of it has left.

    A segment ends where a sentence does, or after SEGMENT tokens. One review is made at a time, of all that has been
    written by then, so reviews cost no more than the time of a draft allows. on_release: called with the text that may
    have left from then on. on_move: as of `play_session`; reviews of segments are no moves, unless one has read the
    whole answer. on_left: called where the game is cancelled or raises after a part has left, with the game as
    it was reviewed until then.

    Before a part has left, what is called over-refusing waits for more, and what is called unsafe ends the release, as
    does a review that fails: the review of the whole answer decides. Later, what is called unsafe ends the draft, and
    the rest is withheld ("segment"); over-refusal can no longer be repaired.
    """
    segments = _Segments(options)
    began = time.monotonic()
    drafting = asyncio.create_task(_draft(game, agents[CONVERSATION], options, segments.add))
    reads: list[_ReadSegment] = []
    passed: _ReadSegment | None = None  # the last after which a part has left

    def cut_off(at: _ReadSegment, failed: FailedStage | None = None) -> Outcome:
        sampled = SampledTurn(at.answer, segments.sampled, len(at.answer.context))
        moves = (Move("draft", sampled, time.monotonic() - began), at.move)
        read = reviewed(answered(game, at.answer), at.review)
        return _with_reviews(
            Outcome("adaptive", read, moves, failed, released=segments.released),
            [one for one in reads if one is not at],
        )

    try:
        while (partial := await segments.next(drafting)) is not None:
            read = await _review(answered(game, partial), agents[FEEDBACK], options)
            if read is None:
                break
            reads.append(read)
            called = read.review.feedback
            if called is not None and called.unsafe and segments.released:
                cut = cut_off(read, "segment")
                for move in cut.moves:
                    on_move(move, cut.game)
                return cut
            if called is None or called.unsafe:
                break
            if called.overrefuse and not segments.released:
                continue  # "Sure." alone helps nobody yet
            segments.release(partial)
            passed = read
            on_release(segments.released)
        return await _to_end(
            game,
            Move("draft", await drafting, time.monotonic() - began),
            segments,
            reads,
            agents=agents,
            options=options,
            rounds=rounds,
            opened=opened,
            on_move=on_move,
        )
    except BaseException:  # cancelled, too: what has left stays left
        if passed is not None and segments.released:
            on_left(cut_off(passed))
        raise
    finally:
        drafting.cancel()


async def _to_end(
    game: Episode,
    draft: Move,
    segments: _Segments,
    reads: list[_ReadSegment],
    *,
    agents: Mapping[str, SessionAgent],
    options: SessionOptions,
    rounds: int,
    opened: frozenset[str],
    on_move: Callable[[Move, Episode], None],
) -> Outcome:
    """What comes after the draft: its review, unless that of a segment has read all of it, and what follows."""
    segments.check(draft.turn)
    game, moves = answered(game, draft.turn), [draft]
    on_move(draft, game)
    if reads and reads[-1].answer.text == draft.turn.text and reads[-1].review.feedback is not None:
        *reads, whole = reads
        game = reviewed(game, whole.review)
        on_move(whole.move, game)
        moves.append(whole.move)
    mode: Mode | Guard = "guard" if segments.released else "adaptive"  # what has left cannot be revised
    outcome = await play_session(game, agents, options, mode=mode, rounds=rounds, opened=opened, on_move=on_move)
    outcome = _with_reviews(replace(outcome, mode="adaptive", moves=(*moves, *outcome.moves)), reads)
    if not segments.released:
        return outcome
    last = outcome.game.feedback[-1] if outcome.game.feedback else None
    if outcome.failed is None and last is not None and last.unsafe:
        outcome = replace(outcome, failed="segment")
    return replace(outcome, released=segments.released) if outcome.withheld else outcome


def _with_reviews(outcome: Outcome, reads: Sequence[_ReadSegment]) -> Outcome:
    """`outcome`, with what the reviews of its segments took."""
    tokens = sum(read.move.sampled.tokens for read in reads)
    return replace(outcome, segment_tokens=tokens, segment_seconds=sum(read.move.seconds for read in reads))


class _Segments:
    """The segments of one draft: what it says so far, up to where the last whole one ends."""

    def __init__(self, options: SessionOptions):
        self.options = options
        self.released = ""
        self.sampled = 0  # tokens of the draft
        self._newest: Turn | None = None
        self._ended = 0  # tokens up to the end of the newest segment
        self._changed = asyncio.Event()

    def add(self, turn: Turn) -> None:
        """Takes the draft so far, with one token more than the last time. What holds no letter and no digit is no
        segment: there is nothing more to review."""
        self.sampled = len(turn.ids)
        at_end = turn.text.rstrip(CLOSING).endswith(SENTENCE_ENDS) or self.sampled - self._ended >= SEGMENT
        more = turn.text[len(self._newest.text) if self._newest else 0 :]
        if at_end and any(map(str.isalnum, more)) and settled(turn.text, self.options.stop) == turn.text:
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


async def _review(game: Episode, agent: SessionAgent, options: SessionOptions) -> _ReadSegment | None:
    """The review of the last answer of `game`; None where it failed."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(options.deadline - began):
            sampled = await agent.next_turn(game, options)
    except (Down, TimeoutError, BadInput):
        return None
    review = read_review(game, sampled.turn, trained=agent.trained)
    return _ReadSegment(game.answers[-1], Move("feedback", sampled, time.monotonic() - began), review)
