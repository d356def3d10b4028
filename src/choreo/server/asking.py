"""The turns of a server whose pair another server samples: requests go out as they come, and that server batches them.

It stands where `worker.Worker` decodes in this process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from choreo.engine.llama import LlamaEngine
from choreo.engine.requests import Completion
from choreo.methods.waltz.agents import Pair
from choreo.server.figures import log
from choreo.server.session import Down
from choreo.server.worker import ROWS, DecodeJob


class AskingWorker:
    """Asks for the rows of all requests until `close`. Any thread may `submit`, `cancel` and `swap`.

    A row's `on_token` is called once its whole turn is there, so nothing streams before that. A row that is cancelled
    while it is asked for is drawn to its end, for nobody. What the server draws that fails leaves the next row alone.
    """

    def __init__(self, pair: Pair, rows: int = ROWS):
        self._pair = pair
        self._pool = ThreadPoolExecutor(rows, thread_name_prefix="ask")
        self._lock = threading.Lock()
        self._asked, self._submitted, self._closing = 0, 0, False

    def submit(self, job: DecodeJob) -> None:
        """Puts a row into the queue. Raises Down where the worker has ended."""
        with self._lock:
            if self._closing:
                raise Down("the engine does not run")
            self._submitted += 1
        self._pool.submit(self._run, job, self._pair)

    def cancel(self, job: DecodeJob) -> None:
        """Leaves the row of `job` out, if it was not asked for yet."""
        job.cancelled = True

    def swap(self, pair: Pair) -> None:
        """New rows are asked for as `pair` samples."""
        self._pair = pair

    def close(self) -> None:
        with self._lock:
            self._closing = True
        self._pool.shutdown()

    @property
    def alive(self) -> bool:
        return not self._closing

    def counts(self) -> tuple[int, int]:
        """The number of rows that are asked for now, and of rows that wait."""
        with self._lock:
            return self._asked, self._submitted - self._asked

    def _run(self, job: DecodeJob, pair: Pair) -> None:
        with self._lock:
            self._asked += 1
        result: Completion | BaseException
        try:
            result = Down("it was cancelled") if job.cancelled else completed(job, pair)
        except Exception as error:  # the message may hold text of users, so only its type is said
            log("engine failed", "error", why=type(error).__name__)
            result = Down(f"the engine failed: {type(error).__name__}")
        with self._lock:
            self._asked -= 1
            self._submitted -= 1
        settle: Callable[[Completion | BaseException], object] = job.done
        with suppress(RuntimeError):  # the event loop that waited for it is closed
            settle(result)


def completed(job: DecodeJob, pair: Pair) -> Completion:
    """What the server draws for the row of a job."""
    row, player = job.row, pair.agents[job.agent]
    engine = player.engine
    assert isinstance(engine, LlamaEngine)
    version = engine.team.version[job.agent]
    if row.held is not None:
        constraint, first = row.held
        begun = first._replace(ids=())  # they are in the context
        ids, _ = engine.goes_on(job.agent, row.request, constraint, begun, row.limit, row.temperature)
    else:
        asked = [row.request]
        [done] = engine.sample(job.agent, asked, max_new_tokens=row.limit, temperature=row.temperature)
        ids = done.ids
    for token in ids:
        row.ids.append(token)
        row.finished = token == player.chat.end_id
        if row.on_token(row):
            break
    return row.completion(version)
