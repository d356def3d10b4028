"""The pair in this process: one worker thread decodes for all requests at once, and agents wait for it.

Drafts and revisions of all games are one batch, reviews another. Rows join and leave between two tokens.
"""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from choreo.agents.local import request, turn_from
from choreo.engine.continuous import Batch, Row
from choreo.engine.ngram_speculation import NgramTable
from choreo.engine.requests import Completion, Request
from choreo.methods.waltz.agents import Pair
from choreo.models.chat import Chat
from choreo.server.constrained_review import ReviewConstraint
from choreo.server.figures import log
from choreo.server.session import Down, SampledTurn, SessionOptions, TooLong, until_stop
from choreo.types import AGENTS, FEEDBACK, Episode, Turn

ROWS = 64  # decoded at once, per agent; more wait
PATIENCE = 4


@dataclass(eq=False)
class _Job:
    agent: str
    row: Row
    done: Callable[[Completion | BaseException], object]  # called in the worker
    cancelled: bool = False


class Worker:
    """Decodes in a thread of its own until `close`. Any thread may `submit`, `cancel` and `swap`."""

    def __init__(self, pair: Pair, rows: int = ROWS):
        self._pair, self._most = pair, rows
        self._new: dict[str, deque[_Job]] = {agent: deque() for agent in AGENTS}
        self._batches: dict[str, list[Batch]] = {agent: [_batch(pair, agent)] for agent in AGENTS}
        self._jobs: dict[Row, _Job] = {}
        self._arrived: list[_Job] = []  # taken from the queue in this turn
        self._gone: deque[_Job] = deque()
        self._passed = dict.fromkeys(AGENTS, 0)  # turns that an agent with rows did not have
        self._wake = threading.Condition()
        self._swap: tuple[Pair, dict[str, Batch]] | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def submit(self, job: _Job) -> None:
        """Raises Down where nothing is decoded any more."""
        with self._wake:
            if self._closing:
                raise Down("the engine does not run")
            self._new[job.agent].append(job)
            self._wake.notify()

    def cancel(self, job: _Job) -> None:
        job.cancelled = True
        self._gone.append(job)

    def swap(self, pair: Pair) -> None:
        """From now on rows begin under `pair`; those that began under the last one end under it.

        Weights are copied here, in the caller's thread, so that nobody waits for it.
        """
        batches = {agent: _batch(pair, agent) for agent in AGENTS}
        with self._wake:
            self._swap = pair, batches

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def counts(self) -> tuple[int, int]:
        """Rows being decoded, rows waiting."""
        return len(self._jobs), sum(map(len, self._new.values()))

    def _run(self) -> None:
        why = "the server is going down"
        try:
            self._decode()
        except Exception as error:  # /ready says so from now on; its message may hold words of users
            why = f"the engine ended: {type(error).__name__}"
            log("engine ended", "critical", why=type(error).__name__, where=traceback.format_tb(error.__traceback__))
        finally:
            with self._wake:
                self._closing = True  # nobody submits from here on
                left = {*self._arrived, *self._jobs.values(), *(job for new in self._new.values() for job in new)}
            for job in left:
                _settle(job, Down(why))

    def _decode(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or self._jobs or any(self._new.values()))
                if self._closing:
                    return
                if self._swap is not None:
                    (self._pair, fresh), self._swap = self._swap, None
                    for agent in AGENTS:
                        left = [batch for batch in self._batches[agent] if batch.rows]
                        self._batches[agent] = [*left, fresh[agent]]
                agent = self._whose_turn()
                self._arrived = self._take(agent)
            while self._gone:
                self._forget(self._gone.popleft())
            batches = self._batches[agent]
            self._turn(agent, batches, self._arrived)
            # Batches of earlier weights go when their last row has ended; one that failed is made anew.
            self._batches[agent] = [batch for batch in batches[:-1] if batch.rows] + batches[-1:]

    def _whose_turn(self) -> str:
        """The agent with most rows, or one that has been passed over PATIENCE times: a step of few rows takes nearly as
        long as one of many, and those who wait come together."""
        rows = {agent: len(self._new[agent]) + self._decoding(agent) for agent in AGENTS}
        turn = max(AGENTS, key=lambda agent: (rows[agent] > 0 and self._passed[agent] >= PATIENCE, rows[agent]))
        for agent in AGENTS:
            self._passed[agent] = 0 if agent == turn or not rows[agent] else self._passed[agent] + 1
        return turn

    def _decoding(self, agent: str) -> int:
        return sum(len(batch.rows) for batch in self._batches[agent])

    def _take(self, agent: str) -> list[_Job]:
        free = self._most - self._decoding(agent)
        waiting = self._new[agent]
        taken = [waiting.popleft() for _ in range(min(max(free, 0), len(waiting)))]
        return [job for job in taken if not job.cancelled]

    def _turn(self, agent: str, batches: list[Batch], arrived: Sequence[_Job]) -> None:
        """Lets rows join the newest batch and all batches make one step."""
        arrived = [job for job in arrived if not job.cancelled]  # `_forget` came too early for these
        self._jobs |= {job.row: job for job in arrived}
        for i, batch in enumerate(batches):
            newest = batch is batches[-1]
            try:
                if newest:
                    batch.join([job.row for job in arrived])
                ended = batch.step() if batch.rows else []
            except Exception as error:  # memory, most likely: these rows are lost, the next ones are not
                lost = {*batch.rows, *(job.row for job in arrived if newest)}
                for row in lost:
                    _settle(self._jobs.pop(row), Down(f"the engine failed: {type(error).__name__}"))
                batches[i] = _batch(self._pair, agent)
                continue
            for row in ended:
                _settle(self._jobs.pop(row), row.completion(batch.version))

    def _forget(self, job: _Job) -> None:
        if self._jobs.pop(job.row, None) is not None:
            for batch in self._batches[job.agent]:
                batch.leave(job.row)


def _batch(pair: Pair, agent: str) -> Batch:
    player = pair.agents[agent]
    return Batch(player.engine.team, agent, end_id=player.chat.end_id, pad_id=player.chat.pad_id)


def _settle(job: _Job, result: Completion | BaseException) -> None:
    with suppress(RuntimeError):  # whoever asked has closed its event loop
        job.done(result)


class WorkerAgent:
    """One agent of the pair, in a server: a worker samples its turns (`SessionAgent`).

    positions: what the base can read. writer: the chat of the answers that it reviews, where they are not its own.
    constraint: holds a review to its JSON; without it every token is sampled, as in training.
    """

    trained = True
    system = False  # a pair is told apart by the system prompts it was trained with; a caller's cannot take their place

    def __init__(
        self,
        worker: Worker,
        chat: Chat,
        agent: str,
        *,
        feedback_tokens: int,
        positions: int,
        writer: Chat | None = None,
        constraint: ReviewConstraint | None = None,
    ):
        self.constraint, self.recall = constraint, NgramTable()
        self.worker, self.chat, self.agent = worker, chat, agent
        self.writer = writer or chat
        self.feedback_tokens, self.positions = feedback_tokens, positions
        self._longest = max(map(len, chat.tokenizer.get_vocab()))  # letters that one token can stand for

    def room(self, game: Episode, options: SessionOptions, rounds: int) -> None:
        texts = [*(text for _, text in game.prompt.earlier), game.prompt.text, *(turn.text for turn in game.answers)]
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
        if letters > self.positions * self._longest:  # which needs no encoding, and so takes no time
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
        if len(asked.context) + most > self.positions:  # the other agent is another model, which reads or writes more
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
        """At temperature 0: a review that is sampled could be drawn again, by another seed or n, until it lets an
        answer pass."""
        if self.constraint is None:
            done = await self._sample(Row(asked, self.feedback_tokens, 0.0))
            return self._sampled(game, asked, done, len(done.ids))
        head = self.constraint.head
        begun = replace(asked, context=(*asked.context, *head))
        room = max(1, self.feedback_tokens - len(head))
        guess = self.recall.guesser(begun.context)
        done = await self._sample(Row(begun, room, 0.0, self.constraint.listener(), guess))
        ids = self.constraint.whole(done.ids)
        self.recall.learn(ids)
        whole = replace(done, ids=ids, finished=ids[-1] == self.chat.end_id, logprobs=())  # what was given has none
        return self._sampled(game, asked, whole, len(done.ids))

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

        job = _Job(self.agent, row, lambda result: loop.call_soon_threadsafe(settle, result))
        self.worker.submit(job)
        try:
            return await future
        except asyncio.CancelledError:
            self.worker.cancel(job)
            raise
