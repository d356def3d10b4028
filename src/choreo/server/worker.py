"""The engine of a server: one thread decodes for all requests at once.

Drafts and revisions of all games are one batch, reviews another. Rows join and leave between two tokens.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from choreo.engine.continuous import Batch, Row
from choreo.engine.requests import Completion
from choreo.methods.waltz.agents import Pair
from choreo.server.figures import log
from choreo.server.session import Down
from choreo.types import AGENTS

ROWS = 64  # the most rows that are decoded at once, per agent; more rows wait
PATIENCE = 4  # how often an agent with rows may be passed over


@dataclass(eq=False)
class DecodeJob:
    """One row for the worker. done: called in the worker's thread, with the completion or with what went wrong."""

    agent: str
    row: Row
    done: Callable[[Completion | BaseException], object]
    cancelled: bool = False


class Worker:
    """Decodes in a thread of its own until `close`. Any thread may `submit`, `cancel` and `swap`."""

    def __init__(self, pair: Pair):
        self._pair = pair
        self._new: dict[str, deque[DecodeJob]] = {agent: deque() for agent in AGENTS}
        self._batches: dict[str, list[Batch]] = {agent: [new_batch(pair, agent)] for agent in AGENTS}
        self._jobs: dict[Row, DecodeJob] = {}
        self._arrived: list[DecodeJob] = []  # taken from the queue in this turn
        self._gone: deque[DecodeJob] = deque()
        self._passed = dict.fromkeys(AGENTS, 0)  # how often in a row an agent with rows was passed over
        self._wake = threading.Condition()
        self._swap: tuple[Pair, dict[str, Batch]] | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def submit(self, job: DecodeJob) -> None:
        """Puts a row into the queue. Raises Down where the worker has ended."""
        with self._wake:
            if self._closing:
                raise Down("the engine does not run")
            self._new[job.agent].append(job)
            self._wake.notify()

    def cancel(self, job: DecodeJob) -> None:
        """Takes the row of `job` out of its batch, before the next step."""
        job.cancelled = True
        self._gone.append(job)

    def swap(self, pair: Pair) -> None:
        """New rows begin under `pair` from now on; rows that began under the last one end under it.

        Weights are copied here, in the caller's thread, so that no row waits for it.
        """
        batches = {agent: new_batch(pair, agent) for agent in AGENTS}
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

    def positions(self, agent: str) -> int | None:
        """The most tokens of a context and its turn together, of `agent`'s model. None is no limit."""
        return self._pair.agents[agent].engine.positions

    def counts(self) -> tuple[int, int]:
        """The number of rows that are decoded now, and of rows that wait."""
        return len(self._jobs), sum(map(len, self._new.values()))

    def _run(self) -> None:
        why = "the server is going down"
        try:
            self._decode()
        except (
            Exception
        ) as error:  # /ready reports it from now on; the message may hold text of users, so only its type is logged
            why = f"the engine ended: {type(error).__name__}"
            log("engine ended", "critical", why=type(error).__name__, where=traceback.format_tb(error.__traceback__))
        finally:
            with self._wake:
                self._closing = True  # no row is submitted from here on
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
        """The agent with most rows, or one that has been passed over PATIENCE times. A step of few rows takes nearly as
        long as a step of many, so it is better to let rows come together first."""
        rows = {agent: len(self._new[agent]) + self._decoding(agent) for agent in AGENTS}
        turn = max(AGENTS, key=lambda agent: (rows[agent] > 0 and self._passed[agent] >= PATIENCE, rows[agent]))
        for agent in AGENTS:
            self._passed[agent] = 0 if agent == turn or not rows[agent] else self._passed[agent] + 1
        return turn

    def _decoding(self, agent: str) -> int:
        return sum(len(batch.rows) for batch in self._batches[agent])

    def _take(self, agent: str) -> list[DecodeJob]:
        free = ROWS - self._decoding(agent)
        waiting = self._new[agent]
        taken = [waiting.popleft() for _ in range(min(max(free, 0), len(waiting)))]
        return [job for job in taken if not job.cancelled]

    def _turn(self, agent: str, batches: list[Batch], arrived: Sequence[DecodeJob]) -> None:
        """Lets rows join the newest batch and all batches make one step."""
        arrived = [job for job in arrived if not job.cancelled]  # cancelled before `_forget` could find them
        self._jobs |= {job.row: job for job in arrived}
        for i, batch in enumerate(batches):
            newest = batch is batches[-1]
            try:
                if newest:
                    batch.join([job.row for job in arrived])
                ended = batch.step() if batch.rows else []
            except Exception as error:  # out of memory, most likely: these rows are lost, later ones are not
                lost = {*batch.rows, *(job.row for job in arrived if newest)}
                for row in lost:
                    _settle(self._jobs.pop(row), Down(f"the engine failed: {type(error).__name__}"))
                batches[i] = new_batch(self._pair, agent)
                continue
            for row in ended:
                _settle(self._jobs.pop(row), row.completion(batch.version))

    def _forget(self, job: DecodeJob) -> None:
        if self._jobs.pop(job.row, None) is not None:
            for batch in self._batches[job.agent]:
                batch.leave(job.row)


def new_batch(pair: Pair, agent: str) -> Batch:
    """An empty batch under the weights that `agent` has now, which are copied."""
    player = pair.agents[agent]
    return Batch(player.engine.team, agent, end_id=player.chat.end_id, pad_id=player.chat.pad_id)


def _settle(job: DecodeJob, result: Completion | BaseException) -> None:
    with suppress(RuntimeError):  # the event loop that waited for it is closed
        job.done(result)
