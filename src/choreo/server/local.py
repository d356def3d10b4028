"""The agents of the pair in this process: each waits for the worker that samples its turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from choreo.agents.constrained_review import ReviewGrammar
from choreo.agents.local import request, turn_from
from choreo.engine.continuous import Row
from choreo.engine.ngram_speculation import NgramTable
from choreo.engine.requests import Completion, Request
from choreo.models.chat import Chat
from choreo.server.session import Down, SampledTurn, SessionOptions, TooLong, until_stop
from choreo.server.worker import DecodeJob, Worker
from choreo.types import FEEDBACK, Episode, Turn

if TYPE_CHECKING:  # it takes httpx2
    from choreo.server.asking import AskingWorker


class WorkerAgent:
    """One agent of the pair, in a server: a worker samples its turns (`SessionAgent`).

    positions: what the base can read. writer: the chat of the answers that it reviews, where they are not its own.
    grammar: holds a review to its JSON; without it every token is free.
    """

    trained = True
    takes_forms = False

    def __init__(
        self,
        worker: Worker | AskingWorker,
        chat: Chat,
        agent: str,
        *,
        feedback_tokens: int,
        positions: int,
        writer: Chat | None = None,
        grammar: ReviewGrammar | None = None,
    ):
        self.grammar, self.recall = grammar, NgramTable()
        self.worker, self.chat, self.agent = worker, chat, agent
        self.writer = writer or chat
        self.feedback_tokens, self.positions = feedback_tokens, positions
        self._longest = max(map(len, chat.tokenizer.get_vocab()))  # letters that one token can stand for

    def room(self, game: Episode, options: SessionOptions, rounds: int) -> None:
        texts = [*(text for _, text in game.prompt.turns), *(turn.text for turn in game.answers)]
        roles = [role for role, _ in game.prompt.earlier]
        if game.answers:
            around = self.chat.room(1, 0, self.feedback_tokens, roles, (FEEDBACK,))
            needs = f"its review, and roles, may take {around}"
        else:
            around = self.chat.room(rounds, options.max_tokens, self.feedback_tokens, roles)
            needs = (
                f"answers of up to {options.max_tokens} with {rounds} rounds of feedback, and roles, may take {around}"
            )
        letters = sum(map(len, texts))
        if letters > self.positions * self._longest:  # a check without encoding, so it takes no time
            raise TooLong(f"this model reads {self.positions} tokens; the messages have {letters} letters, and {needs}")
        words = sum(len(self.chat.encode(text)) for text in texts)
        if words + around > self.positions:
            raise TooLong(f"this model reads {self.positions} tokens; the messages take {words}, and {needs}")

    def _request(self, game: Episode, options: SessionOptions) -> Request:
        key = ("serve", options.seed)
        return request(self.chat, game, self.agent, writer=self.writer, feedback_tokens=self.feedback_tokens, key=key)

    async def next_turn(
        self, game: Episode, options: SessionOptions, on_token: Callable[[Turn], None] | None = None
    ) -> SampledTurn:
        asked = self._request(game, options)
        most = self.feedback_tokens if self.agent == FEEDBACK else options.max_tokens
        if len(asked.context) + most > self.positions:  # where the other agent's model reads or writes more
            raise Down(f"the game is too long for the {self.agent} agent")
        if self.agent == FEEDBACK:
            return await self._review(game, asked)
        done = await self._sample(
            Row(asked, options.max_tokens, options.temperature, self._listener(game, options.stop, on_token))
        )
        return self._sampled(game, asked, done, len(done.ids))

    def _sampled(self, game: Episode, asked: Request, done: Completion, sampled: int) -> SampledTurn:
        turn = turn_from(self.chat, game, self.agent, asked.context, done)
        if turn.failure:
            raise Down(f"the {self.agent} agent gave no turn: {turn.failure}")
        return SampledTurn(turn, sampled, len(asked.context))

    async def _review(self, game: Episode, asked: Request) -> SampledTurn:
        """A greedy review: a sampled one could be drawn again, by another seed or n, until it lets an answer pass."""
        if self.grammar is None:
            done = await self._sample(Row(asked, self.feedback_tokens, 0.0))
            return self._sampled(game, asked, done, len(done.ids))
        first = self.grammar.start(self.feedback_tokens)
        begun = replace(asked, context=(*asked.context, *first.ids))
        guess = self.recall.guesser(begun.context)
        room = self.feedback_tokens - len(first.ids)
        done = await self._sample(Row(begun, room, 0.0, guess=guess, held=(self.grammar, first)))
        self.recall.learn((*first.ids, *done.ids))
        text = self.chat.decode_whole(ids := (*first.ids, *done.ids))
        # Ids of a server's row have no log-probability: nobody learns from them.
        turn = Turn(self.agent, len(game.reviews), asked.context, ids, (), done.version, text, done.finished)
        return SampledTurn(turn, len(done.ids), len(asked.context))

    def _listener(
        self, game: Episode, stop: Sequence[str], on_token: Callable[[Turn], None] | None
    ) -> Callable[[Row], bool]:
        if not stop and on_token is None:
            return lambda row: False

        loop = asyncio.get_running_loop()

        def listen(row: Row) -> bool:
            text = self.chat.decode(row.ids)
            if on_token is not None:
                turn = Turn(self.agent, len(game.reviews), row.request.context, tuple(row.ids), (), 0, text, False)
                loop.call_soon_threadsafe(on_token, turn)
            return len(until_stop(text, stop)) < len(text)

        return listen

    async def _sample(self, row: Row) -> Completion:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Completion] = loop.create_future()

        def settle(result: Completion | BaseException) -> None:
            if future.done():  # cancelled meanwhile
                return
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

        job = DecodeJob(self.agent, row, lambda result: loop.call_soon_threadsafe(settle, result))
        self.worker.submit(job)
        try:
            return await future
        except asyncio.CancelledError:
            self.worker.cancel(job)
            raise
