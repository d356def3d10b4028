"""One game of the pair for one caller: the moves of `waltz/protocol.py`, one at a time, against a deadline.

Every stage can fail, and what has not been checked is withheld unless the operator has opened that failure by name.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from choreo.errors import BadInput
from choreo.game.moves import answered, read_review, reviewed, turn_of
from choreo.server.openai_responses import TracedGame, TracedMove
from choreo.text.feedback import needed_leniency
from choreo.types import CONVERSATION, FEEDBACK, Episode, Turn

Mode = Literal["adaptive", "always", "off", "shadow"]
Guard = Literal["guard", "repair"]  # of another model's answer, which is reviewed alone, or revised too (`guardrail`)
Stage = Literal["draft", "feedback", "revision"]
Failure = Literal["feedback", "timeout", "unparsable", "revision"]

MODES: tuple[Mode, ...] = ("adaptive", "always", "off", "shadow")
STAGES: tuple[Stage, ...] = ("draft", "feedback", "revision")
# Failures that an operator may open. A revision that fails is none of them: the draft has been called bad by then.
OPENABLE: tuple[Failure, ...] = ("feedback", "timeout", "unparsable")

# What a caller gets for an answer: that nobody could review, or that was called unsafe.
WITHHELD = "This answer could not be checked and is withheld. Please try again later."
UNSAFE = "This answer was called unsafe when it was reviewed, and is withheld."


class Down(Exception):
    """An agent cannot speak now: its server or its engine failed. The message holds no user's text."""


@dataclass(frozen=True)
class Wish:
    """What a caller wants of the conversation agent; the feedback agent takes none, and samples nothing.

    max_tokens: of each answer. stop: the answer ends before any of these. seed: names the noise.
    deadline: of the whole request, in the seconds of `time.monotonic`.
    """

    max_tokens: int
    temperature: float
    stop: tuple[str, ...]
    seed: int
    deadline: float


class Refused(Down):
    """An agent's server will not take what it was sent, and would not take it again."""


class TooLong(Exception):
    """The conversation does not fit what the agent can read. The message says what would."""


class Said(NamedTuple):
    """A turn, how many tokens it took to say, and how many were read before (0: the server does not count them)."""

    turn: Turn
    tokens: int
    read: int


class SessionAgent(Protocol):
    """Who speaks. system: whether a caller's system message reaches it. trained: to review, so that its reviews are
    read as training reads them; those of another model are read leniently (`text.feedback.read_feedback`)."""

    system: bool
    trained: bool

    def room(self, game: Episode, wish: Wish, rounds: int) -> None:
        """Raises TooLong where a game that begins like `game` may come to need more context than there is. Of a game
        that has its answer it is asked for the review alone.

        Raises BadInput where the chat template cannot hold such a conversation.
        """
        ...

    async def say(self, game: Episode, wish: Wish, token: Callable[[Turn], None] | None = None) -> Said:
        """This agent's next turn in `game`. `token` hears the turn so far after every token of an answer, where the
        agent can. Raises Down, and BadInput as `room` does."""
        ...


class Move(NamedTuple):
    """What was said in one stage, and what it took."""

    stage: Stage
    said: Said
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """How a game ended.

    failed: what failed after the draft, or None. opened: the last answer passes nevertheless, by the operator's leave.
    """

    mode: Mode | Guard
    game: Episode
    moves: tuple[Move, ...]
    failed: Failure | None = None
    opened: bool = False
    why: str = ""  # an agent failed; no user's words

    @property
    def answer(self) -> Turn | None:
        """What passes: the last answer; after a failure the newest that was reviewed and not called unsafe. None where
        that is none, and all is withheld."""
        if self.failed is None or self.opened or self.mode == "shadow":
            return self.game.answers[-1]
        read = zip(self.game.answers, self.game.feedback, strict=False)
        return next((turn for turn, said in reversed([*read]) if said is not None and not said.unsafe), None)

    @property
    def withheld(self) -> bool:
        return self.answer is None

    @property
    def revised(self) -> bool:
        return self.answer not in (None, self.game.answers[0])

    @property
    def strayed(self) -> int:
        """Reviews that could only be read leniently."""
        return sum(
            needed_leniency(turn.text, said) for turn, said in zip(self.game.reviews, self.game.feedback, strict=True)
        )

    def tokens(self, stage: Stage) -> int:
        return sum(move.said.tokens for move in self.moves if move.stage == stage)

    def seconds(self, *stages: Stage) -> float:
        return sum(move.seconds for move in self.moves if move.stage in stages)


async def dance(
    game: Episode,
    agents: Mapping[str, SessionAgent],
    wish: Wish,
    *,
    mode: Mode | Guard,
    rounds: int,
    opened: frozenset[str] = frozenset(),
    tell: Callable[[Move, Episode], None] = lambda move, game: None,
    token: Callable[[Turn], None] | None = None,
) -> Outcome:
    """Plays `game` to its end. Raises Down, TimeoutError or BadInput (a chat template that does not take the
    conversation) where there is no draft; every later failure is an outcome.

    rounds: T_max. "off" plays none, "shadow" and "guard" review the draft and leave it so, "always" has every answer
        revised. In training the game ends with the last revision; here it is reviewed too, and withheld where it is
        called unsafe.
    tell: hears every move as it is made. token: hears the draft while it is sampled.
    """
    rounds = {"off": 0, "shadow": 0, "guard": 0}.get(mode, rounds)
    moves: list[Move] = []
    while agent := turn_of(game, 0 if mode == "off" else rounds + 1, always=mode == "always"):
        stage: Stage = "feedback" if agent == FEEDBACK else "revision" if game.answers else "draft"
        if stage == "revision" and len(game.reviews) > rounds:
            if len(game.answers) > 1 and game.feedback[-1] is not None and game.feedback[-1].unsafe:
                return Outcome(mode, game, tuple(moves), "revision")
            break
        began = time.monotonic()
        try:
            async with asyncio.timeout(wish.deadline - began):
                said = await agents[agent].say(game, wish, token if stage == "draft" else None)
        except (Down, TimeoutError, BadInput) as error:
            if stage == "draft":
                raise
            failed: Failure = "revision" if stage == "revision" else "feedback"
            if failed == "feedback" and isinstance(error, TimeoutError):
                failed = "timeout"
            why = str(error)
            return Outcome(mode, game, tuple(moves), failed, failed in opened, why)
        if agent == CONVERSATION:
            game = answered(game, said.turn)
        else:
            game = reviewed(game, read_review(game, said.turn, trained=agents[agent].trained))
        moves.append(Move(stage, said, time.monotonic() - began))
        tell(moves[-1], game)
        if stage == "revision" and _flagged(game, wish.stop):
            return Outcome(mode, game, tuple(moves), "revision")
        if agent == FEEDBACK and game.feedback[-1] is None:
            return Outcome(mode, game, tuple(moves), "unparsable", "unparsable" in opened)
    return Outcome(mode, game, tuple(moves))


def _flagged(game: Episode, stop: Sequence[str]) -> bool:
    """Whether what a caller would get of the last answer has been called unsafe before, but for white space."""
    bad = [turn for turn, said in zip(game.answers, game.feedback, strict=False) if said is not None and said.unsafe]
    return cut(game.answers[-1].text, stop).split() in [cut(turn.text, stop).split() for turn in bad]


def cut(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first stop string in it."""
    ends = [at for s in stop if (at := text.find(s)) >= 0]
    return text[: min(ends, default=len(text))]


def trace(outcome: Outcome) -> TracedGame:
    """The game as a caller with the right to it sees it: drafts and reviews in the clear, times in milliseconds."""
    return {
        "triggered": outcome.game.triggered,
        "revised": outcome.revised,
        "withheld": outcome.failed if outcome.withheld else None,
        "bypassed": outcome.failed if outcome.opened else None,
        "moves": [move_record(move, outcome.game, outcome.moves[:i]) for i, move in enumerate(outcome.moves)],
    }


def move_record(move: Move, game: Episode, before: tuple[Move, ...]) -> TracedMove:
    record: TracedMove = {
        "stage": move.stage,
        "tokens": move.said.tokens,
        "ms": round(1000 * move.seconds, 1),
        "version": move.said.turn.version,
    }
    if move.stage != "feedback":
        return {**record, "text": move.said.turn.text}
    number = sum(earlier.stage == "feedback" for earlier in before)
    said = game.feedback[number]
    if said is None:
        return {**record, "parsed": False, "reasoning": None}
    return {
        **record,
        "parsed": True,
        "unsafe": said.unsafe,
        "overrefuse": said.overrefuse,
        "feedback": said.feedback,
        "reasoning": said.reasoning,
        "lenient": needed_leniency(move.said.turn.text, said),
    }
