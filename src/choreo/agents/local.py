"""A model that is loaded here, as an agent that is asked in text."""

from __future__ import annotations

from collections.abc import Sequence

from choreo.agents.base import Asked
from choreo.engine.requests import Completion, Engine, Request
from choreo.models.chat import Chat
from choreo.types import CONVERSATION, FEEDBACK, Spoken

TOO_LONG = "too long for the model's positions"


class LocalSpeaker:
    """A model that is loaded here: its chat, and an engine whose team has an agent of the name that speaks.

    positions: of the model. A turn that they have no room for fails alone; None is no limit.
    """

    def __init__(
        self, name: str, chat: Chat, engine: Engine, agents: dict[str, str] | None = None, positions: int | None = None
    ):
        self.name = name
        self._chat, self._engine, self._positions = chat, engine, positions
        self._agents = agents or {CONVERSATION: CONVERSATION, FEEDBACK: FEEDBACK}

    def say(self, agent: str, asked: Sequence[Asked], *, max_tokens: int, temperature: float) -> list[Spoken]:

        requests = [Request(self._context(agent, one), one.key) for one in asked]
        fits = [self._positions is None or len(r.context) + max_tokens <= self._positions for r in requests]
        fitting = [request for request, fit in zip(requests, fits, strict=True) if fit]
        done = iter(
            self._engine.sample(self._agents[agent], fitting, max_new_tokens=max_tokens, temperature=temperature)
            if fitting
            else ()
        )
        return [
            self._turn(agent, int(one.key[-1]), next(done))
            if fit
            else Spoken(agent, int(one.key[-1]), "", False, 0, TOO_LONG)
            for one, fit in zip(asked, fits, strict=True)
        ]

    def _turn(self, agent: str, round: int, said: Completion) -> Spoken:
        """What did not arrive is no answer, as over an endpoint."""
        failure = self._chat.failure(said.ids, said.finished)
        text = "" if failure else self._chat.decode(said.ids)
        return Spoken(agent, round, text, said.finished, len(said.ids), failure)

    def _context(self, agent: str, one: Asked) -> tuple[int, ...]:
        encode = self._chat.encode
        earlier = [(role, encode(text)) for role, text in one.earlier]
        if agent == FEEDBACK:
            return self._chat.review_context(encode(one.prompt), encode(one.answer), earlier)
        history = [(encode(answer), encode(words)) for answer, words in one.history]
        return self._chat.answer_context(encode(one.prompt), history, earlier)
