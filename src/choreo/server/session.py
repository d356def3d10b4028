"""One game of the pair for one caller: the moves of `game.moves`, one at a time, against a deadline.

`game.play` has the batch driver, where every phase is one batch and nothing fails alone. Here games come and go, every
stage can fail, and what has not been checked is withheld unless the operator has opened that failure by name.
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
from choreo.server.structured import Form, FormedTurn
from choreo.text.feedback import needed_leniency
from choreo.types import CONVERSATION, FEEDBACK, Episode, Turn

Mode = Literal["adaptive", "always", "off", "shadow"]
Guard = Literal["guard", "repair"]  # of another model's answer, which is reviewed alone, or revised too (`guardrail`)
Stage = Literal["draft", "feedback", "revision"]
FailedStage = Literal["feedback", "timeout", "unparsable", "revision", "segment"]

MODES: tuple[Mode, ...] = ("adaptive", "always", "off", "shadow")
# What becomes of a caller's system messages: HTTP 400; a place behind the conversation agent's own system prompt; or
# what training made of them: the same, as one message, at the beginning of a conversation alone.
SystemPolicy = Literal["refuse", "prepend", "train"]
SYSTEM_POLICIES: tuple[SystemPolicy, ...] = ("refuse", "prepend", "train")
# Of a checked stream: an answer leaves once its game is over, or its draft by segments (`release`).
Release = Literal["whole", "segment"]
RELEASES: tuple[Release, ...] = ("whole", "segment")
STAGES: tuple[Stage, ...] = ("draft", "feedback", "revision")
# Failures that an operator may open. A failed revision is none of them: the draft has been called bad by then.
OPENABLE: tuple[FailedStage, ...] = ("feedback", "timeout", "unparsable")

# What a caller gets in place of an answer that nobody could review, or that was called unsafe. They begin as refusals
# do: evaluations that look for the words of one would count any other sentence as an answer.
WITHHELD = "I'm sorry, but I can't provide this answer: it could not be reviewed. Please try again later."
UNSAFE = "I'm sorry, but I can't provide this answer: its review called it unsafe."


class Down(Exception):
    """An agent cannot answer now: its server or its engine failed. The message holds no user's text."""


class Refused(Down):
    """An agent's server does not take what it was sent, and would not take it again."""


class TooLong(Exception):
    """The conversation does not fit what the agent can read. The message says what would."""


@dataclass(frozen=True)
class SessionOptions:
    """What a caller asks of the conversation agent. The feedback agent takes no options, and its turn is greedy.

    max_tokens: of each answer. stop: the answer ends before any of these. seed: names the noise.
    deadline: of the whole request, in the seconds of `time.monotonic`. form: None asks for plain text.
    """

    max_tokens: int
    temperature: float
    stop: tuple[str, ...]
    seed: int
    deadline: float
    form: Form | None = None


class SampledTurn(NamedTuple):
    """A turn, the number of tokens that were sampled for it, and the number of tokens in its context (0: the agent's
    server does not count them)."""

    turn: Turn
    tokens: int
    context_tokens: int


class SessionAgent(Protocol):
    """An agent that is asked for one turn of one game, and awaited. It is `agents.base.Agent` for a server: the same
    state and the same moves, but with a caller's options, and with tokens as they are sampled.

    trained: as of `Agent`. takes_forms: whether it can be asked for tool calls and JSON.
    """

    trained: bool
    takes_forms: bool

    def room(self, game: Episode, options: SessionOptions, rounds: int) -> None:
        """Checks that a game which begins like `game` has room in the agent's context. Where `game` has its answer,
        only the room of the review is checked.

        Raises TooLong where it may need more context than there is, and BadInput where the chat template cannot hold
        such a conversation.
        """
        ...

    async def next_turn(
        self, game: Episode, options: SessionOptions, on_token: Callable[[Turn], None] | None = None
    ) -> SampledTurn:
        """This agent's next turn in `game`. `on_token` gets the turn so far after every token of an answer, where the
        agent can give it. Raises Down, and BadInput as `room` does."""
        ...


class Move(NamedTuple):
    """What was sampled in one stage, and the seconds that it took."""

    stage: Stage
    sampled: SampledTurn
    seconds: float

    @property
    def turn(self) -> Turn:
        return self.sampled.turn


@dataclass(frozen=True)
class Outcome:
    """How a game ended.

    failed: what failed after the draft, or None. opened: the last answer passes all the same, as the operator allows.
    why: the reason that a failed agent gave; it holds no user's text. released: what had left of an answer before
    something failed; it was reviewed (`release`). segment_tokens, segment_seconds: of reviews of segments, which are no
    moves.
    """

    mode: Mode | Guard
    game: Episode
    moves: tuple[Move, ...]
    failed: FailedStage | None = None
    opened: bool = False
    why: str = ""
    released: str = ""
    segment_tokens: int = 0
    segment_seconds: float = 0.0

    @property
    def answer(self) -> Turn | None:
        """The answer that passes: the last one; after a failure, the newest that was reviewed and not called unsafe.
        None where there is no such answer, and all is withheld."""
        if self.failed is None or self.opened or self.mode == "shadow":
            return self.game.answers[-1]
        read = zip(self.game.answers, self.game.feedback, strict=False)
        return next((turn for turn, parsed in reversed([*read]) if parsed is not None and not parsed.unsafe), None)

    @property
    def withheld(self) -> bool:
        return self.answer is None

    @property
    def revised(self) -> bool:
        return self.answer not in (None, self.game.answers[0])

    @property
    def lenient(self) -> int:
        """The number of reviews that could only be read leniently."""
        return sum(
            needed_leniency(turn.text, read) for turn, read in zip(self.game.reviews, self.game.feedback, strict=True)
        )

    def tokens(self, stage: Stage) -> int:
        segments = self.segment_tokens if stage == "feedback" else 0
        return segments + sum(move.sampled.tokens for move in self.moves if move.stage == stage)

    def seconds(self, *stages: Stage) -> float:
        segments = self.segment_seconds if "feedback" in stages else 0.0
        return segments + sum(move.seconds for move in self.moves if move.stage in stages)


async def play_session(
    game: Episode,
    agents: Mapping[str, SessionAgent],
    options: SessionOptions,
    *,
    mode: Mode | Guard,
    rounds: int,
    opened: frozenset[str] = frozenset(),
    on_move: Callable[[Move, Episode], None] = lambda move, game: None,
    on_token: Callable[[Turn], None] | None = None,
) -> Outcome:
    """Plays `game` to its end. Raises Down, TimeoutError or BadInput (a chat template that does not take the
    conversation) where there is no draft; every later failure is an outcome.

    rounds: T_max. "off" plays none, "shadow" and "guard" review the draft and leave it as it is, "always" has every
        answer revised. In training the game ends with the last revision; here that one is reviewed too, and withheld
        where it is called unsafe.
    on_move: called after every move. on_token: called with the draft while it is sampled.
    """
    rounds = {"off": 0, "shadow": 0, "guard": 0}.get(mode, rounds)
    moves: list[Move] = []
    while role := turn_of(game, 0 if mode == "off" else rounds + 1, always=mode == "always"):
        stage: Stage = "feedback" if role == FEEDBACK else "revision" if game.answers else "draft"
        if stage == "revision" and len(game.reviews) > rounds:
            if len(game.answers) > 1 and game.feedback[-1] is not None and game.feedback[-1].unsafe:
                return Outcome(mode, game, tuple(moves), "revision")
            break
        began = time.monotonic()
        try:
            async with asyncio.timeout(options.deadline - began):
                sampled = await agents[role].next_turn(game, options, on_token if stage == "draft" else None)
        except (Down, TimeoutError, BadInput) as error:
            if stage == "draft":
                raise
            failed: FailedStage = "revision" if stage == "revision" else "feedback"
            if failed == "feedback" and isinstance(error, TimeoutError):
                failed = "timeout"
            return Outcome(mode, game, tuple(moves), failed, failed in opened, str(error))
        if role == CONVERSATION:
            game = answered(game, sampled.turn)
        else:
            game = reviewed(game, read_review(game, sampled.turn, trained=agents[role].trained))
        moves.append(Move(stage, sampled, time.monotonic() - began))
        on_move(moves[-1], game)
        if stage == "revision" and _flagged(game, options.stop):
            return Outcome(mode, game, tuple(moves), "revision")
        if role == FEEDBACK and game.feedback[-1] is None:
            return Outcome(mode, game, tuple(moves), "unparsable", "unparsable" in opened)
    return Outcome(mode, game, tuple(moves))


def _flagged(game: Episode, stop: Sequence[str]) -> bool:
    """Whether the caller would get, but for white space, what has been called unsafe before."""
    bad = [turn for turn, read in zip(game.answers, game.feedback, strict=False) if read is not None and read.unsafe]
    last = _given(game.answers[-1], stop)
    return last.split() in [_given(turn, stop).split() for turn in bad]


def _given(answer: Turn, stop: Sequence[str]) -> str:
    """What a caller gets of `answer`, as a text. Stop strings are none of what a reviewer reads of calls and JSON."""
    return answer.text if isinstance(answer, FormedTurn) else until_stop(answer.text, stop)


def until_stop(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first stop string in it."""
    ends = [at for s in stop if (at := text.find(s)) >= 0]
    return text[: min(ends, default=len(text))]


def settled(text: str, stop: Sequence[str]) -> str:
    """What of an unfinished text may be sent: no half letter, and nothing that may yet become a stop string."""
    text = text.rstrip("\ufffd")
    held = max((n for s in stop for n in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:n])), default=0)
    return text[: len(text) - held]


def traced(outcome: Outcome) -> TracedGame:
    """The whole game for a caller whose key allows it: drafts and reviews as they are, times in milliseconds."""
    return {
        "triggered": outcome.game.triggered,
        "revised": outcome.revised,
        "withheld": outcome.failed if outcome.withheld else None,
        "bypassed": outcome.failed if outcome.opened else None,
        "moves": [traced_move(move, outcome.game, outcome.moves[:i]) for i, move in enumerate(outcome.moves)],
    }


def traced_move(move: Move, game: Episode, before: tuple[Move, ...]) -> TracedMove:
    """One move of `game`, as in `traced`. before: the moves before it."""
    record: TracedMove = {
        "stage": move.stage,
        "tokens": move.sampled.tokens,
        "ms": round(1000 * move.seconds, 1),
        "version": move.turn.version,
    }
    if move.stage != "feedback":
        return {**record, "text": move.turn.text}
    read = game.feedback[sum(earlier.stage == "feedback" for earlier in before)]
    if read is None:
        return {**record, "parsed": False, "reasoning": None}
    return {
        **record,
        "parsed": True,
        "unsafe": read.unsafe,
        "overrefuse": read.overrefuse,
        "feedback": read.feedback,
        "reasoning": read.reasoning,
        "lenient": needed_leniency(move.turn.text, read),
    }
