"""The turns of a server whose pair another server samples: requests go out as they come, and that server batches them.

It stands where `worker.Worker` decodes in this process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from choreo.config.rollouts import Rollouts
from choreo.engine.llama import LlamaEngine
from choreo.engine.requests import Completion
from choreo.errors import BadInput, Unavailable
from choreo.methods.waltz.agents import Pair
from choreo.server.figures import log
from choreo.server.session import Down
from choreo.server.worker import ROWS, DecodeJob

AGAIN = 5.0  # seconds until a server that did not answer is asked again, by nobody's request


@dataclass(eq=False, slots=True)
class _Asked:
    """A pair, and what is to be closed once its last row has ended.

    rows: how many have not ended. proven: whether the server was seen to have its weights. reached: whether the server
    answered when it was last asked.
    """

    pair: Pair
    servers: ExitStack
    rows: int = 0
    proven: bool = True
    reached: bool = True

    @property
    def engines(self) -> list[LlamaEngine]:
        return [own.engine for own in self.pair.models() if isinstance(own.engine, LlamaEngine)]

    def prove(self) -> None:
        """Raises BadInput where the server does not have the pair's weights."""
        for engine in self.engines:
            engine.ready()


class AskingWorker:
    """Asks for the rows of all requests until `close`. Any thread may `submit`, `cancel`, `swap` and `prove`.

    A row's `on_token` is called once its whole turn is there, so nothing streams before that. A row that is cancelled
    while it is asked for ends with the piece that is drawn, for nobody. What the server draws that fails leaves the
    next row alone. A server that did not answer is asked by and by whether it is there again, with the same weights.

    deadline: the seconds that a completion may take. Raises BadInput where a server cannot be used.
    """

    def __init__(self, pair: Pair, sampler: Rollouts, deadline: float):
        self._sampler, self._deadline = sampler, deadline
        self._now, self._before = self._opened(pair), list[_Asked]()
        self._pool = ThreadPoolExecutor(ROWS, thread_name_prefix="ask")
        self._lock = threading.Lock()
        self._running, self._submitted, self._closing = 0, 0, threading.Event()

    def submit(self, job: DecodeJob) -> None:
        """Puts a row into the queue. Raises Down where the worker has ended, or where the server has other weights."""
        with self._lock:
            asked = self._now
            if self._closing.is_set() or not asked.proven:
                raise Down("the engine does not run")
            self._submitted += 1
            asked.rows += 1
            future = self._pool.submit(self._run, job, asked)
        future.add_done_callback(lambda done: self._ended(job, asked, done))

    def cancel(self, job: DecodeJob) -> None:
        """Asks for no more of the row of `job`."""
        job.cancelled = True

    def swap(self, pair: Pair) -> None:
        """New rows are asked for as `pair` samples. The servers of the pair before are left when its last row has
        ended. Raises BadInput, and changes nothing, where the servers do not have the pair's weights."""
        after = self._opened(pair, self._now.pair)
        with self._lock:
            self._before.append(self._now)
            self._now = after
        self._leave()

    def prove(self, after: Exception) -> None:
        """Proves again the weights that rows are asked of. Raises BadInput where a server does not have them: then no
        row is, until a pair is proven. after: what went wrong before."""
        with self._lock:
            asked = self._now
            asked.proven = False
        try:
            asked.prove()
        except BadInput as error:
            if isinstance(error, Unavailable):
                self._lost(asked)
            raise BadInput(f"{after}; nothing is answered, for the weights before are gone too: {error}") from error
        asked.proven = asked.reached = True

    def close(self) -> None:
        """Ends what is asked for now, too."""
        with self._lock:
            self._closing.set()
            all_asked = [*self._before, self._now]
        for asked in all_asked:
            asked.servers.close()
        self._pool.shutdown(cancel_futures=True)

    @property
    def alive(self) -> bool:
        return not self._closing.is_set() and self._now.proven and self._now.reached

    def counts(self) -> tuple[int, int]:
        """The number of rows that are asked for now, and of rows that wait."""
        with self._lock:
            return self._running, self._submitted - self._running

    def positions(self, agent: str) -> int | None:
        """The most tokens of a context and its turn together, here and on every server. None is no limit."""
        return self._now.pair.agents[agent].engine.positions

    def _opened(self, pair: Pair, before: Pair | None = None) -> _Asked:
        """The pair as servers sample it, which are seen to have its weights, and not those of `before`."""
        with ExitStack() as servers:  # closed here where a proof fails
            asked = _Asked(servers.enter_context(pair.sampled_by(self._sampler)), servers)
            for engine, earlier in zip(asked.engines, before.models() if before else (), strict=False):
                engine.prove_change(earlier.engine.team.agents)
            for engine in asked.engines:
                engine.wait_at_most(self._deadline)
            asked.servers = servers.pop_all()
        return asked

    def _run(self, job: DecodeJob, asked: _Asked) -> Completion | BaseException:
        with self._lock:
            self._running += 1
        try:
            if job.cancelled or not asked.proven:
                return Down("it was cancelled" if job.cancelled else "the engine does not run")
            found = completed(job, asked.pair)
            asked.reached = True
            return found
        except Exception as error:  # the message may hold text of users, so only its type is said
            log("engine failed", "error", why=type(error).__name__)
            if isinstance(error, Unavailable):
                self._lost(asked)
            return Down(f"the engine failed: {type(error).__name__}")
        finally:
            with self._lock:
                self._running -= 1

    def _ended(self, job: DecodeJob, asked: _Asked, done: Future[Completion | BaseException]) -> None:
        with self._lock:
            self._submitted -= 1
            asked.rows -= 1
        self._leave()
        settle: Callable[[Completion | BaseException], object] = job.done
        with suppress(RuntimeError):  # the event loop that waited for it is closed
            settle(Down("the server is going down") if done.cancelled() else done.result())

    def _leave(self) -> None:
        """Closes the servers of earlier pairs that no row is asked of any more."""
        with self._lock:
            left = [asked for asked in self._before if not asked.rows]
            self._before = [asked for asked in self._before if asked.rows]
        for asked in left:
            asked.servers.close()

    def _lost(self, asked: _Asked) -> None:
        """The server did not answer. Whether it is there again is found out in a thread of its own."""
        with self._lock:
            begin, asked.reached = asked.reached, False
        if begin:
            threading.Thread(target=self._find, args=(asked,), name="find", daemon=True).start()

    def _find(self, asked: _Asked) -> None:
        """Proves the weights as soon as the server answers: most likely it was started anew."""
        while not self._closing.wait(AGAIN) and asked is self._now:
            try:
                asked.prove()
            except Unavailable:
                continue
            except BadInput as error:
                log("engine failed", "critical", why=str(error))
                asked.proven = False
            else:
                asked.proven = True
            asked.reached = True
            return


def completed(job: DecodeJob, pair: Pair) -> Completion:
    """What the server draws for the row of a job. Raises Down where the job is cancelled meanwhile."""
    row, player = job.row, pair.agents[job.agent]
    engine = player.engine
    assert isinstance(engine, LlamaEngine)
    version = engine.team.version[job.agent]
    if row.held is not None:
        constraint, first = row.held
        begun = first._replace(ids=())  # they are in the context
        ids: tuple[int, ...] = ()
        for piece in engine.goes_on(job.agent, row.request, constraint, begun, row.limit, row.temperature):
            if job.cancelled:
                raise Down("it was cancelled")
            ids = piece[0]
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
