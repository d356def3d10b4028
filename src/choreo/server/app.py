"""From HTTP to a dance and back (Starlette)."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from choreo.server.call import Call
from choreo.server.events import ClientLeft, EventStream, while_there
from choreo.server.figures import Figures, facts, log
from choreo.server.guardrail import PATH, Conversations, guardrail
from choreo.server.keys import Key, Limiter, find
from choreo.server.openai_requests import ApiError, ChatRequest, internal, read_request
from choreo.server.openai_responses import Health, Model, Models, Ready
from choreo.server.openapi import description
from choreo.server.pages import pages
from choreo.server.session import Mode, Outcome, SessionAgent, Wish, dance


@dataclass(frozen=True)
class Settings:
    """What an operator decides. deadline: seconds for a whole request. queue: requests in play at most, those that wait
    for the decoder too. body: bytes. opened: failures that let the draft pass (`dance.OPENABLE`)."""

    model: str
    mode: Mode
    rounds: int
    answer_tokens: int
    temperature: float
    opened: frozenset[str] = frozenset()
    deadline: float = 30.0
    queue: int = 256
    body: int = 256 * 1024
    log_text: bool = False


class Server:
    """The state of one server: who may ask, who speaks, what was counted, what is in play."""

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
        """alive: whether the engine runs. waiting: sequences that wait for it. encode: ids of another model's
        answer, for an agent in this process that reads it. stop: called when all is answered."""
        self.settings, self.agents, self.keys = settings, agents, keys
        self.alive, self.fingerprint, self.encode, self._stop = alive, fingerprint, encode, stop
        self.running, self.in_flight = 0, Counter[str]()  # games in play, and whose
        self.started = int(time.time())
        self.limiter = Limiter()
        self.conversations: defaultdict[str, Conversations] = defaultdict(Conversations)  # by key
        self.figures = Figures(lambda: self.running, waiting)
        self._behind: set[asyncio.Task[None]] = set()  # reviews in the shadow, which nobody waits for

    # ---- who and how much -----------------------------------------------------------------------

    def key(self, request: Request, authorization: str | None = None) -> Key:
        """The caller. authorization: said in another header. Raises 401."""
        key = find(self.keys, authorization or request.headers.get("authorization"))
        if key is None:
            raise ApiError(
                401,
                "no valid API key (Authorization: Bearer …)",
                type="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        request.state.key = key.name
        return key

    def limit(self, key: Key) -> None:
        if wait := self.limiter.wait(key):
            headers = {"Retry-After": str(max(1, round(wait + 0.5)))}
            message = f"this key may ask {key.per_minute} times a minute"
            raise ApiError(429, message, type="rate_limit_error", code="rate_limit_exceeded", headers=headers)

    def enter(self, key: Key, games: int) -> None:
        """Counts so many more games in play. Raises 429 where the key has too many, 503 where the queue is full; call
        `leave` once they are over."""
        most = min(self.settings.queue, key.in_flight or self.settings.queue)
        if games > most:
            raise ApiError(400, f"at most {most} answers are in play here", param="n", code="invalid_value")
        if key.in_flight is not None and self.in_flight[key.name] + games > key.in_flight:
            message = f"this key may have {key.in_flight} answers in play"
            raise ApiError(
                429, message, type="rate_limit_error", code="rate_limit_exceeded", headers={"Retry-After": "1"}
            )
        if self.running + games > self.settings.queue:
            raise ApiError(
                503, "the queue is full", type="server_error", code="overloaded", headers={"Retry-After": "1"}
            )
        self.running += games
        self.in_flight[key.name] += games

    def leave(self, key: str, games: int = 1) -> None:
        self.running -= games
        self.in_flight[key] -= games

    async def body(self, request: Request) -> bytes:
        received = b""
        try:
            async with asyncio.timeout(self.settings.deadline):
                async for part in request.stream():
                    received += part
                    if len(received) > self.settings.body:
                        message = f"the body is larger than {self.settings.body} bytes"
                        raise ApiError(413, message, code="request_too_large")
        except TimeoutError:
            message = f"the body did not come within {self.settings.deadline:g} s"
            raise ApiError(408, message, code="request_timeout") from None
        except ClientDisconnect:  # nobody reads it; the counter of requests does
            raise ApiError(499, "the client left") from None
        return received

    # ---- /v1/chat/completions -------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        began = time.monotonic()
        key = self.key(request)
        self.limit(key)
        asked = read_request(await self.body(request))
        if asked.model != self.settings.model:
            message = f"no model {asked.model!r} here; there is {self.settings.model!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        self.allow(key, asked)
        games = asked.n or 1
        self.limiter.owe(key, games - 1)
        self.enter(key, games)
        leave = partial(self.leave, key.name, games)
        try:
            call = Call(self, key, asked, began)
        except BaseException:
            leave()
            raise
        if asked.stream:
            return EventStream(call.stream, leave, self.figures.disconnected.labels(key.name).inc)
        try:
            return JSONResponse(await while_there(request.receive, call.whole()))
        except ClientLeft:
            self.figures.disconnected.labels(key.name).inc()
            return Response(status_code=499)
        finally:
            leave()

    def allow(self, key: Key, asked: ChatRequest) -> None:
        """Raises 403 for what the key does not allow, 400 for a review by a pair that was trained without."""
        wanted = asked.choreo
        for name, wants, may in (
            ("trace", wanted.trace, key.trace),
            ("mode", wanted.mode not in (None, self.settings.mode), key.modes),
            ("stream", wanted.stream == "unchecked", key.unchecked),
        ):
            if wants and not may:
                message = f"this key does not allow choreo.{name}"
                raise ApiError(403, message, type="permission_error", param=f"choreo.{name}", code="permission_denied")
        if self.settings.rounds < 1 and (wanted.stream == "unchecked" or (wanted.mode or self.settings.mode) != "off"):
            name = "stream" if wanted.stream == "unchecked" else "mode"
            message = "this pair was trained without feedback (T_max 0); there is mode off alone"
            raise ApiError(400, message, param=f"choreo.{name}", code="unsupported_value")

    def shadow(self, key: str, draft: Outcome, wish: Wish, event: str = "answer") -> None:
        """Has a draft that was given out reviewed, for the record alone. It keeps its place in the queue."""

        async def review() -> None:
            late = replace(wish, deadline=time.monotonic() + self.settings.deadline)
            try:
                seen = await dance(draft.game, self.agents, late, mode="shadow", rounds=1)
                self.counted(key, replace(seen, moves=(*draft.moves, *seen.moves)), event)
            finally:
                self.leave(key)

        self.running += 1
        self.in_flight[key] += 1
        task = asyncio.create_task(review())
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    def counted(self, key: str, outcome: Outcome, event: str = "answer", **more: Any) -> None:
        self.figures.count(key, outcome)
        level = "critical" if outcome.opened else "error" if outcome.failed else "info"
        texts = {"texts": _texts(outcome)} if self.settings.log_text else {}
        log(event, level, key=key, mode=outcome.mode, **facts(outcome), **more, **texts)

    # ---- the rest -------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        self.key(request)
        wanted = request.path_params.get("model")
        if wanted is not None and wanted != self.settings.model:
            raise ApiError(404, f"no model {wanted!r} here", param="model", code="model_not_found")
        model: Model = {"id": self.settings.model, "object": "model", "created": self.started, "owned_by": "choreo"}
        models: Models = {"object": "list", "data": [model]}
        return JSONResponse(model if wanted is not None else models)

    async def health(self, request: Request) -> Response:
        alive: Health = {"status": "alive"}
        return JSONResponse(alive)

    async def ready(self, request: Request) -> Response:
        self.key(request)
        if not self.alive():
            raise ApiError(503, "the engine does not run", type="server_error", code="not_ready")
        about: Ready = {
            "status": "ready",
            "model": self.settings.model,
            "mode": self.settings.mode,
            "rounds": self.settings.rounds,
            "fingerprint": self.fingerprint,
        }
        return JSONResponse(about)

    async def metrics(self, request: Request) -> Response:
        if not self.key(request).metrics:
            raise ApiError(403, "this key does not allow metrics", type="permission_error", code="permission_denied")
        return Response(self.figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def app(self) -> Starlette:
        described = JSONResponse(description())  # once: it takes 20 ms, and needs no key

        async def openapi(request: Request) -> Response:
            return Response(described.body, media_type="application/json")

        @asynccontextmanager
        async def lifespan(app: Starlette):
            yield
            if self._behind:
                await asyncio.wait(self._behind, timeout=self.settings.deadline)
            if self._stop is not None:
                await self._stop()

        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._counted(self.chat), methods=["POST"]),
                Route(PATH, self._counted(partial(guardrail, self)), methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/models/{model}", self.models),
                Route("/health", self.health),
                Route("/ready", self.ready),
                Route("/metrics", self.metrics),
                Route("/openapi.json", openapi),
                *pages(),
            ],
            exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _bug},
            lifespan=lifespan,
        )

    def _counted(self, handler: Callable[[Request], Awaitable[Response]]):
        """Every request of the API by its key and status."""

        async def counting(request: Request) -> Response:
            def count(status: int) -> None:
                self.figures.requests.labels(getattr(request.state, "key", ""), str(status)).inc()

            try:
                response = await handler(request)
            except ApiError as error:
                count(error.status)
                raise
            if isinstance(response, EventStream):
                response.ended = count  # its status is not known yet
            else:
                count(response.status_code)
            return response

        return counting


def _texts(outcome: Outcome) -> list[str]:
    game = outcome.game
    return [game.prompt.text, *(move.said.turn.text for move in outcome.moves)]


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """No such path, no such method: what Starlette says, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    body = ApiError(error.status_code, error.detail).body
    return JSONResponse(body, error.status_code, dict(error.headers or {}))


async def _bug(request: Request, error: Exception) -> Response:
    """uvicorn logs the traceback."""
    return JSONResponse(internal().body, 500)
