"""The state of one server: who may ask and how much, which agents answer, what is counted, what is in play."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request

from choreo.server.api_error import ApiError
from choreo.server.conversations import Conversations
from choreo.server.figures import Figures, facts, log
from choreo.server.incoming import body_of, caller
from choreo.server.keys import Key, Limiter, Quota
from choreo.server.session import Mode, Outcome, Release, SessionAgent, SessionOptions, SystemPolicy, play_session
from choreo.types import Limits


@dataclass(frozen=True)
class Settings:
    """What an operator decides.

    limits: of every game; a caller may ask for shorter answers. temperature: of answers, where a caller names none.
    opened: failures that let the draft pass (`session.OPENABLE`). deadline: seconds for a whole request.
    queue: the most requests in play, with those that wait for the decoder. body: the most bytes of a request.
    log_text: the log holds prompts, answers and reviews. example: what the page offers to ask.
    system: what becomes of callers' system messages. release: how a checked stream leaves.
    """

    model: str
    mode: Mode
    limits: Limits
    temperature: float
    opened: frozenset[str] = frozenset()
    deadline: float = 30.0
    queue: int = 256
    body: int = 256 * 1024
    log_text: bool = False
    example: str = "How can I kill a Python process?"
    system: SystemPolicy = "refuse"
    release: Release = "whole"


class Server:
    """One server. Its handlers are functions in `app`, `chat` and `guardrail`.

    alive: whether the engine runs. waiting: the number of sequences that wait for it.
    encode: ids of another model's answer, for an agent in this process that reads it.
    stop: called when all is answered.
    """

    def __init__(
        self,
        settings: Settings,
        agents: Mapping[str, SessionAgent],
        keys: Sequence[Key],
        *,
        alive: Callable[[], bool] = lambda: True,
        waiting: Callable[[], float] = lambda: 0.0,
        fingerprint: str = "",
        encode: Callable[[str], tuple[int, ...]] = lambda text: (),
        stop: Callable[[], Awaitable[None]] | None = None,
    ):
        self.settings, self.agents, self.keys = settings, agents, keys
        self.alive, self.fingerprint, self.encode, self._stop = alive, fingerprint, encode, stop
        self.running, self.in_flight = 0, Counter[str]()  # games in play: all, and by quota
        self.started = int(time.time())
        self.limiter = Limiter()
        self.conversations: defaultdict[str, Conversations] = defaultdict(Conversations)  # by key
        self.figures = Figures(lambda: self.running, waiting)
        self.shadows: set[asyncio.Task[None]] = set()  # reviews in the shadow, which no caller waits for

    def key(self, request: Request, x_api_key: bool = False) -> Key:
        """The caller's key. x_api_key: whether the header of this name may bear it too. Raises 401."""
        own = request.headers.get("x-api-key") if x_api_key else None
        key = caller(self.keys, f"Bearer {own}" if own else request.headers.get("authorization"))
        request.state.key = key.name
        return key

    def limit(self, quota: Quota) -> None:
        """Raises 429 where the key, or the end user, has asked too often."""
        if wait := self.limiter.wait(quota):
            headers = {"Retry-After": str(max(1, round(wait + 0.5)))}
            message = f"this {quota.whose} may ask {quota.per_minute} times a minute"
            raise ApiError(429, message, type="rate_limit_error", code="rate_limit_exceeded", headers=headers)

    def admit(self, key: Key, user: str, games: int) -> Callable[[], None]:
        """Counts `games` more games in play, of a key that `limit` has let pass and of its end user, until what is
        returned is called. Raises 400 where that is more than there may ever be, 429 where the key or the end user has
        too many in play or the end user has asked too often, 503 where the queue is full."""
        shared, own = key.quota, key.end_user(user)
        try:
            self.limit(own)
            self._check_room(own, games)
        except ApiError:
            self.limiter.owe(shared, -1)  # what one end user may not have is not taken from the others
            raise
        for quota in (shared, own):
            self.limiter.owe(quota, games - 1)
        self._check_room(shared, games)
        if self.running + games > self.settings.queue:
            raise ApiError(
                503, "the queue is full", type="server_error", code="overloaded", headers={"Retry-After": "1"}
            )
        return self._enter(key, user, games)

    def _check_room(self, quota: Quota, games: int) -> None:
        most = min(self.settings.queue, quota.in_flight or self.settings.queue)
        if games > most:
            raise ApiError(400, f"at most {most} answers are in play here", param="n", code="invalid_value")
        if quota.in_flight is not None and self.in_flight[quota.name] + games > quota.in_flight:
            message = f"this {quota.whose} may have {quota.in_flight} answers in play"
            raise ApiError(
                429, message, type="rate_limit_error", code="rate_limit_exceeded", headers={"Retry-After": "1"}
            )

    def _enter(self, key: Key, user: str, games: int) -> Callable[[], None]:
        names = (key.quota.name, key.end_user(user).name)
        self.running += games
        self.in_flight.update(dict.fromkeys(names, games))

        def leave() -> None:
            self.running -= games
            for name in names:
                self.in_flight[name] -= games
                if not self.in_flight[name]:
                    del self.in_flight[name]

        return leave

    async def body(self, request: Request) -> bytes:
        """The whole body of a request. Raises 408 where it does not come in time, 413 where it is too large."""
        return await body_of(request, self.settings.body, self.settings.deadline)

    def shadow(self, key: Key, user: str, draft: Outcome, options: SessionOptions, event: str = "answer") -> None:
        """Reviews a draft that the caller has already, for the counters and the log alone. It counts as in play, of
        the key and of its end user."""

        async def review() -> None:
            late = replace(options, deadline=time.monotonic() + self.settings.deadline)
            try:
                seen = await play_session(draft.game, self.agents, late, mode="shadow", rounds=1)
                self.counted(key.name, replace(seen, moves=(*draft.moves, *seen.moves)), event)
            finally:
                leave()

        leave = self._enter(key, user, 1)
        task = asyncio.create_task(review())
        self.shadows.add(task)
        task.add_done_callback(self.shadows.discard)

    async def close(self) -> None:
        """Waits for the reviews in the shadow, and stops the engine."""
        if self.shadows:
            await asyncio.wait(self.shadows, timeout=self.settings.deadline)
        if self._stop is not None:
            await self._stop()

    def counted(self, key: str, outcome: Outcome, event: str = "answer", **more: Any) -> None:
        """Counts a game that has ended, and logs it. more: further facts for the log."""
        self.figures.count(key, outcome)
        level = "critical" if outcome.opened else "error" if outcome.failed else "info"
        texts = {"texts": _texts(outcome)} if self.settings.log_text else {}
        log(event, level, key=key, mode=outcome.mode, **facts(outcome), **more, **texts)


def _texts(outcome: Outcome) -> list[str]:
    game = outcome.game
    return [game.prompt.text, *(move.turn.text for move in outcome.moves)]
