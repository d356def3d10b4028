"""A model that is loaded in this process, as an agent: its state becomes token ids, and an engine samples the turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, Generic

from typing_extensions import TypeVar

from choreo.agents.base import Key, State, state_of, turn_key
from choreo.agents.constrained_review import ReviewGrammar
from choreo.engine.requests import Completion, Engine, Request
from choreo.models.chat import Chat, Ids
from choreo.types import CONVERSATION, FEEDBACK, AnyTurn, Episode, Limits, Turn

TOO_LONG = "too long for the model's positions"
NOBODY = "nobody"  # the writer of a review that a trained reviewer's model had no room for

E = TypeVar("E", bound=Engine, default=Engine, covariant=True)


@dataclass(frozen=True, eq=False)
class LocalAgent(Generic[E]):
    """A model that is loaded here. One agent plays both roles where both are on one base.

    chat: how the model reads and writes. engine: what samples it; its team has a policy for every role played.
    writer: the chat in which the answers that it reviews are written, so that it reads the very ids that were
        sampled; its own where one agent plays both roles. None makes it read the words of every answer.
    trained: see `Agent`. An untrained model's turn fails where it has no room, or no word before its limit. In
        training such a turn is an empty answer, which the policy has to learn not to give.
    grammar: what its reviews are held to. None leaves every token of them free.
    """

    chat: Chat
    engine: E
    writer: Chat | None = None
    trained: bool = True
    name: str = ""
    grammar: ReviewGrammar | None = None

    def turns(
        self, games: Sequence[Episode[Any]], role: str, limits: Limits, *, key: Key, temperature: float
    ) -> list[Turn]:
        """See `Agent.turns`. The engine raises ValueError for an answer in training that has no room.

        An answer may have more ids in its reviewer's tokenizer than its writer was allowed. It is never cut: where
        the reviewer's model has no room for it, nobody reviews it, which counts as a review that does not parse.
        """
        tokens = limits.tokens(role)
        requests = [
            replace(
                request(self.chat, game, role, feedback_tokens=limits.feedback_tokens, key=key, writer=self.writer),
                constraint=self.grammar if role == FEEDBACK else None,
            )
            for game in games
        ]
        fits = [self._has_room(role, len(one.context) + tokens) for one in requests]
        fitting = list(compress(requests, fits))
        sampled = iter(
            self.engine.sample(role, fitting, max_new_tokens=tokens, temperature=temperature) if fitting else ()
        )
        return [
            turn_from(self.chat, game, role, one.context, next(sampled), trained=self.trained)
            if fit
            else self._without_room(game, role)
            for game, one, fit in zip(games, requests, fits, strict=True)
        ]

    def _has_room(self, role: str, tokens: int) -> bool:
        if self.trained and role == CONVERSATION:
            return True  # training has left out every prompt whose answers may have no room
        return self.engine.positions is None or tokens <= self.engine.positions

    def _without_room(self, game: Episode[Any], role: str) -> Turn:
        agent, failure = (NOBODY, "") if self.trained else (role, TOO_LONG)
        return Turn(agent, len(game.reviews), (), (), (), 0, "", False, failure)


def request(
    chat: Chat, game: Episode[Any], role: str, *, feedback_tokens: int, key: Key, writer: Chat | None = None
) -> Request:
    """What an engine is asked for the turn of `role` in `game`: the state as ids, and the name of the noise."""
    context = context_of(chat, state_of(game, role), feedback_tokens, writer)
    return Request(context, turn_key(game, role, key))


def context_of(chat: Chat, state: State[Any], feedback_tokens: int, writer: Chat | None = None) -> Ids:
    """The ids of a state, in the format of `chat`.

    A feedback string had to be read out of JSON, so its ids are new ones (no policy's action, in no loss). It was
    written in at most `feedback_tokens` ids, but broken bytes or other merges can make the new ids more, and a
    reviewer by rule may write what it likes. The cut keeps every context within what the recipe allows.
    """
    prompt = chat.encode(state.prompt.text)
    earlier = chat.encoded(state.prompt.earlier)
    if state.answer is not None:
        return chat.review_context(prompt, _read(chat, state.answer, writer), earlier)
    history = [(_own(chat, turn), chat.encode(words)[:feedback_tokens]) for turn, words in state.history]
    return chat.answer_context(prompt, history, earlier)


def turn_from(
    chat: Chat, game: Episode[Any], role: str, context: Ids, completion: Completion, *, trained: bool = True
) -> Turn:
    """The turn of `role` in `game` that an engine completed. trained: as in `LocalAgent`."""
    ids, finished = completion.ids, completion.finished
    shared = (completion.logprobs, completion.version)
    if completion.choices:  # a grammar has no place for reasoning that a template would drop
        text = chat.decode_whole(ids)
        return Turn(role, len(game.reviews), context, ids, *shared, text, finished, choices=completion.choices)
    failure = chat.failure(ids) if trained else chat.failure(ids, finished)
    text = "" if failure and not trained else chat.decode(ids)
    return Turn(role, len(game.reviews), context, ids, *shared, text, finished, failure)


def _read(chat: Chat, answer: AnyTurn, writer: Chat | None) -> Ids:
    """What `chat` reads of another agent's answer."""
    if writer is not None and isinstance(answer, Turn):
        return chat.as_read(answer, writer)
    return chat.encode(answer.text)


def _own(chat: Chat, answer: AnyTurn) -> Ids:
    """An own earlier answer: the very ids that were sampled."""
    return answer.ids if isinstance(answer, Turn) else chat.encode(answer.text)
