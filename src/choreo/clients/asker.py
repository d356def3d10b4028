"""Many questions to one server at a time: in threads, each reply kept as it comes, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from choreo.clients.cache import Cache
from choreo.clients.http import Client, Endpoint, Exchange
from choreo.clients.reply import Failure, Reply

Outcome = Reply | Failure


class Asker:
    """Asks the model at `endpoint`. One thread at a time may use it.

    cache: a file that keeps replies; None keeps them in memory. Failures are not kept. name: of the threads.
    counts: calls (requests sent), retries (those of them after a failure), prompt_tokens, completion_tokens, and
        unmetered (replies whose tokens the server did not count; they are in no sum).
    Raises BadInput for a cache that cannot be opened.
    """

    def __init__(self, endpoint: Endpoint, cache: Path | None, name: str):
        self.endpoint, self.name = endpoint, name
        self.counts: Counter[str] = Counter()
        self.cache = Cache(cache)
        self._client = Client(endpoint)

    def kept(self, keys: Iterable[str]) -> dict[str, Reply]:
        """The replies in the cache, by key."""
        return {key: Reply(**reply) for key, reply in self.cache.find(keys).items()}

    def ask(self, questions: Mapping[str, dict[str, Any]], check: Callable[[Outcome], None]) -> dict[str, Outcome]:
        """The outcome of each request body, by its key; `endpoint.concurrency` at a time.

        check: gets each outcome as it comes. If it raises, no other question is sent, and this raises the same. After a
        failure "wrong" the client sends no other question: `check` may get these as failures "stopped" first.
        """
        outcomes: dict[str, Outcome] = {}
        if not questions:
            return outcomes
        self._client.stopping.clear()
        with ThreadPoolExecutor(self.endpoint.concurrency, thread_name_prefix=self.name) as pool:
            futures: dict[Future[tuple[Exchange, Outcome]], str] = {}
            try:
                for key, body in questions.items():
                    futures[pool.submit(self._one, key, body)] = key
                for future in as_completed(futures):
                    key = futures.pop(future)
                    outcomes[key] = self._count(future)
                    check(outcomes[key])
            except BaseException:
                # Requests on their way were paid for: wait for them (a time-out at most), so that they are kept.
                self._client.stopping.set()
                pool.shutdown(wait=True, cancel_futures=True)
                for future in futures:
                    if not future.cancelled() and not future.exception():
                        self._count(future)
                raise
        return outcomes

    def _one(self, key: str, body: dict[str, Any]) -> tuple[Exchange, Outcome]:
        """Asks, and stores a reply at once; the outcome that holds is the first one stored."""
        asked = self._client.ask(body)
        if isinstance(asked.outcome, Failure):
            return asked, asked.outcome
        return asked, Reply(**self.cache.keep(key, asdict(asked.outcome)))

    def _count(self, future: Future[tuple[Exchange, Outcome]]) -> Outcome:
        """Counts what a question took, and returns its outcome."""
        asked, outcome = future.result()
        self.counts["calls"] += asked.calls
        self.counts["retries"] += max(0, asked.calls - 1)
        reply = asked.outcome
        if isinstance(reply, Failure):
            return outcome
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            self.counts["unmetered"] += 1
        self.counts["prompt_tokens"] += reply.prompt_tokens or 0
        self.counts["completion_tokens"] += reply.completion_tokens or 0
        return outcome

    def close(self) -> None:
        self._client.close()
        self.cache.close()
