"""The moves of the game, as pure functions of a game in play (WaltzRL, section 3).

A game in play is an `Episode` that is not over yet. A turn has the ids of its writer; a reader with another tokenizer
is given its words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, NamedTuple

from typing_extensions import TypeVar

from choreo.agents.base import Asked, Key
from choreo.engine.requests import Completion, Engine, Request
from choreo.models.chat import Chat, Ids
from choreo.text.feedback import read_feedback
from choreo.types import CONVERSATION, FEEDBACK, Episode, Feedback, S, Said, Turn

ACT = {CONVERSATION: "answer", FEEDBACK: "feedback"}


NOBODY = "nobody"  # whose review it is where the reviewer's model has no room for an answer


E = TypeVar("E", bound=Engine, default=Engine, covariant=True)


class Player(NamedTuple, Generic[E]):
    """A model that agents play on: how it reads and writes, and what samples it."""

    chat: Chat
    engine: E


Players = Mapping[str, Player]
"""By agent. Agents on one base have one player."""


class Review(NamedTuple, Generic[S]):
    """One reviewer's turn on an answer and what was read in it (None: nothing that may be applied)."""

    turn: S
    feedback: Feedback | None


Reviewer = Callable[[Sequence[Episode]], list[Review[Turn]]]
"""Reviews the last answer of every game given, in order. The feedback agent is one; `systems.oracle` another."""


def turn_of(game: Episode[Any], rounds: int, always: bool = False) -> str | None:
    """The agent whose turn it is, or None where the game is over (see `play`).

    always: a satisfied review asks for a revision too; one that does not parse has no words, and never does.
    """
    if len(game.answers) > len(game.reviews):
        return FEEDBACK if len(game.reviews) < rounds else None
    if not game.answers:
        return CONVERSATION
    last = game.feedback[-1]
    return CONVERSATION if last is not None and (always or not last.satisfied) else None


def read_by_words(game: Episode[Any], turn: Said) -> Feedback | None:
    """What a model that was never trained to review says in `turn` of the last answer, read leniently."""
    material = [*(text for _, text in game.prompt.earlier), game.prompt.text, game.answers[-1].text]
    return None if turn.failure else read_feedback(turn.text, material, turn.finished)


def answered(game: Episode[S], turn: S) -> Episode[S]:
    """The game with one more answer."""
    return replace(game, answers=(*game.answers, turn))


def reviewed(game: Episode[S], said: Review[S]) -> Episode[S]:
    """The game with one more review."""
    return replace(game, reviews=(*game.reviews, said.turn), feedback=(*game.feedback, said.feedback))


def request(chat: Chat, game: Episode, agent: str, *, writer: Chat, feedback_tokens: int, key: Key) -> Request:
    """What an engine is asked for `agent`'s turn in `game`: its state as ids, and the name of its noise.

    chat: the agent's; writer: the one that answers are written in.
    """
    if agent == FEEDBACK:  # state (p, c_t): no earlier rounds (WaltzRL, section 4.2)
        answer = chat.as_read(game.answers[-1], writer)
        context = chat.review_context(chat.encode(game.prompt.text), answer, _earlier(chat, game))
    else:
        context = _state(chat, game, feedback_tokens)
    return Request(context, (*key, game.prompt.id, game.sample, ACT[agent], len(game.reviews)))


def spoken(chat: Chat, game: Episode, agent: str, context: Ids, done: Completion) -> Turn:
    """What `agent` said in `game`, from what its engine completed."""
    text, failure = chat.decode(done.ids), chat.failure(done.ids)
    return Turn(agent, len(game.reviews), context, done.ids, done.logprobs, done.version, text, done.finished, failure)


def _state(chat: Chat, game: Episode, feedback_tokens: int) -> Ids:
    """What the conversation agent sees next: (p, H_{t-1}), with the feedback string alone standing for f.

    That string had to be read out of JSON, so its ids are new ones (nobody's action, in no loss). It was
    written in at most `feedback_tokens` ids, but broken bytes or other merges can make the new ids more,
    and another reviewer may write what it likes; the cut bounds every context by what the recipe allows.
    """
    said = [chat.encode(f.feedback)[:feedback_tokens] if f else () for f in game.feedback]
    history = [(turn.ids, ids) for turn, ids in zip(game.answers, said, strict=True)]
    return chat.answer_context(chat.encode(game.prompt.text), history, _earlier(chat, game))


def _earlier(chat: Chat, game: Episode) -> list[tuple[str, Ids]]:
    return [(role, chat.encode(text)) for role, text in game.prompt.earlier]


def asked_of(game: Episode[S], agent: str, key: Key) -> Asked:
    """What `agent` is asked for in `game`: its state as text, and the name of its noise."""
    said = [parsed.feedback if parsed else "" for parsed in game.feedback]
    history = tuple((turn.text, words) for turn, words in zip(game.answers, said, strict=False))
    own = (*key, game.prompt.id, game.sample, ACT[agent], len(game.reviews))
    if agent == FEEDBACK:  # state (p, c_t): no earlier rounds (WaltzRL, section 4.2)
        return Asked(game.prompt.text, (), game.answers[-1].text, own, game.prompt.earlier)
    return Asked(game.prompt.text, history, "", own, game.prompt.earlier)
