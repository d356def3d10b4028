"""From HTTP to a dance and back (Starlette)."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from choreo.serve.dance import Agent, Down, Mode, Move, Outcome, TooLong, Wish, dance, move_record
from choreo.serve.events import ClientLeft, EventStream, Push, while_there
from choreo.serve.figures import Figures, facts, log
from choreo.serve.keys import Key, Limiter, find
from choreo.serve.pages import pages
from choreo.serve.wire import ApiError, ChatRequest, Reply, cut, extension, read_request, said, usage
from choreo.types import CONVERSATION, Episode, Prompt


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
        self, settings: Settings, agents: Mapping[str, Agent], keys: Sequence[Key], *,
        alive: Callable[[], bool] = lambda: True, waiting: Callable[[], float] = lambda: 0.0,
        fingerprint: str = "", stop: Callable[[], Awaitable[None]] | None = None,
    ):  # fmt: skip
        """alive: whether the engine runs. waiting: sequences that wait for it. stop: called when all is answered."""
        self.settings, self.agents, self.keys = settings, agents, keys
        self.alive, self.fingerprint, self._stop = alive, fingerprint, stop
        self.running = 0
        self.started = int(time.time())
        self.limiter = Limiter()
        self.figures = Figures(lambda: self.running, waiting)
        self._behind: set[asyncio.Task[None]] = set()  # reviews in the shadow, which nobody waits for

    # ---- who and how much -----------------------------------------------------------------------

    def key(self, request: Request) -> Key:
        """The caller. Raises 401."""
        key = find(self.keys, request.headers.get("authorization"))
        if key is None:
            raise ApiError(
                401, "no valid API key (Authorization: Bearer …)", type="authentication_error", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        request.state.key = key.name
        return key

    def limit(self, key: Key) -> None:
        if wait := self.limiter.wait(key):
            headers = {"Retry-After": str(max(1, round(wait + 0.5)))}
            message = f"this key may ask {key.per_minute} times a minute"
            raise ApiError(429, message, type="rate_limit_error", code="rate_limit_exceeded", headers=headers)

    def enter(self) -> None:
        """Counts one more game in play. Raises 503 where the queue is full; call `leave` once for each."""
        if self.running >= self.settings.queue:
            raise ApiError(
                503, "the queue is full", type="server_error", code="overloaded", headers={"Retry-After": "1"}
            )
        self.running += 1

    def leave(self) -> None:
        self.running -= 1

    async def body(self, request: Request) -> bytes:
        received = b""
        async for part in request.stream():
            received += part
            if len(received) > self.settings.body:
                raise ApiError(413, f"the body is larger than {self.settings.body} bytes", code="request_too_large")
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
        call = Call(self, key, asked, began)
        self.enter()
        if asked.stream:
            return EventStream(call.stream, self.leave, self.figures.disconnected.labels(key.name).inc)
        try:
            return JSONResponse(await while_there(request.receive, call.whole()))
        except ClientLeft:
            self.figures.disconnected.labels(key.name).inc()
            return Response(status_code=499)  # nobody reads it; the counter of requests does
        finally:
            self.leave()

    def allow(self, key: Key, asked: ChatRequest) -> None:
        """Raises 403 for what the key does not allow."""
        wanted = asked.choreo
        for name, wants, may in (
            ("trace", wanted.trace, key.trace),
            ("mode", wanted.mode not in (None, self.settings.mode), key.modes),
            ("stream", wanted.stream == "unchecked", key.unchecked),
        ):
            if wants and not may:
                message = f"this key does not allow choreo.{name}"
                raise ApiError(403, message, type="permission_error", param=f"choreo.{name}", code="permission_denied")

    def shadow(self, key: str, draft: Outcome, wish: Wish) -> None:
        """Has a draft that was given out reviewed, for the record alone. It keeps its place in the queue."""

        async def review() -> None:
            late = replace(wish, deadline=time.monotonic() + self.settings.deadline)
            try:
                seen = await dance(draft.game, self.agents, late, mode="shadow", rounds=1)
                self.counted(key, replace(seen, moves=(*draft.moves, *seen.moves)))
            finally:
                self.leave()

        self.running += 1
        task = asyncio.create_task(review())
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    def counted(self, key: str, outcome: Outcome, **more: Any) -> None:
        self.figures.count(key, outcome)
        level = "critical" if outcome.opened else "error" if outcome.failed else "info"
        texts = {"texts": _texts(outcome)} if self.settings.log_text else {}
        log("answer", level, key=key, mode=outcome.mode, **facts(outcome), **more, **texts)

    # ---- the rest -------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        self.key(request)
        wanted = request.path_params.get("model")
        if wanted is not None and wanted != self.settings.model:
            raise ApiError(404, f"no model {wanted!r} here", param="model", code="model_not_found")
        model = {"id": self.settings.model, "object": "model", "created": self.started, "owned_by": "choreo"}
        return JSONResponse(model if wanted is not None else {"object": "list", "data": [model]})

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        self.key(request)
        if not self.alive():
            raise ApiError(503, "the engine does not run", type="server_error", code="not_ready")
        about = {"mode": self.settings.mode, "rounds": self.settings.rounds, "fingerprint": self.fingerprint}
        return JSONResponse({"status": "ready", "model": self.settings.model, **about})

    async def metrics(self, request: Request) -> Response:
        if not self.key(request).metrics:
            raise ApiError(403, "this key does not allow metrics", type="permission_error", code="permission_denied")
        return Response(self.figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def app(self) -> Starlette:
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
                Route("/v1/models", self.models),
                Route("/v1/models/{model}", self.models),
                Route("/health", self.health),
                Route("/ready", self.ready),
                Route("/metrics", self.metrics),
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


class Call:
    """One request, allowed and read."""

    def __init__(self, server: Server, key: Key, asked: ChatRequest, began: float):
        settings = server.settings
        self.server, self.key, self.asked, self.began = server, key.name, asked, began
        self.unchecked = asked.choreo.stream == "unchecked"
        self.mode: Mode = "shadow" if self.unchecked else asked.choreo.mode or settings.mode
        self.rounds = max(1, settings.rounds) if self.mode == "always" else settings.rounds
        self.reply = Reply(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), settings.model, server.fingerprint)
        limit = settings.answer_tokens if asked.limit is None else min(asked.limit, settings.answer_tokens)
        self.wish = Wish(
            max_tokens=limit,
            temperature=settings.temperature if asked.temperature is None else asked.temperature,
            stop=asked.stops,
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
            deadline=began + settings.deadline,
        )
        *earlier, last = asked.messages
        if not server.agents[CONVERSATION].system:
            for i, message in enumerate(asked.messages):
                if message.role in ("system", "developer"):
                    raise ApiError(
                        400, "the pair was trained with system prompts of its own; it takes no other",
                        param=f"messages.{i}.role", code="unsupported_value",
                    )  # fmt: skip
        before = tuple(("system" if m.role == "developer" else m.role, m.text) for m in earlier)
        prompt = Prompt("", last.text, "general", "serve", earlier=before)
        self.games = [Episode(prompt, sample, ()) for sample in range(asked.n or 1)]
        try:
            server.agents[CONVERSATION].room(self.games[0], self.wish, 0 if self.mode == "off" else self.rounds)
        except TooLong as error:
            raise ApiError(400, str(error), param="messages", code="context_length_exceeded") from None

    async def whole(self) -> dict[str, Any]:
        outcomes = await self.play()
        traced = self.asked.choreo.trace
        return self.reply.completion(outcomes, self.wish.stop, outcomes[0].moves[0].said.read, traced)

    async def stream(self, push: Push) -> None:
        """Checked: each answer in one piece, once its game is over. Unchecked: the draft, as it is sampled."""
        sent = [""] * len(self.games)
        first = True

        def token(index: int, text: str) -> None:
            nonlocal first
            text = _settled(cut(text, self.wish.stop), self.wish.stop)
            if len(text) > len(sent[index]):
                if first:
                    self.server.figures.first.labels(self.mode).observe(time.monotonic() - self.began)
                    first = False
                role = {} if sent[index] else {"role": "assistant"}
                push(self.reply.chunk(index, {**role, "content": text[len(sent[index]) :]}))
                sent[index] = text

        def tell(index: int, move: Move, game: Episode, before: tuple[Move, ...]) -> None:
            if self.asked.choreo.trace:
                push(self.reply.note(choreo={"index": index, "move": move_record(move, game, before)}))

        def over(index: int, outcome: Outcome) -> None:
            nonlocal first
            text, finish = said(outcome, self.wish.stop)
            role = {} if sent[index] else {"role": "assistant"}
            if first:
                self.server.figures.first.labels(self.mode).observe(time.monotonic() - self.began)
                first = False
            push(self.reply.chunk(index, {**role, "content": text[len(sent[index]) :]}))
            push(self.reply.chunk(index, {}, finish))

        outcomes = await self.play(tell, token if self.unchecked else None, over)
        if self.asked.choreo.trace:
            push(self.reply.note(choreo=extension(outcomes)))
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            push(self.reply.note(usage=usage(outcomes, outcomes[0].moves[0].said.read)))

    async def play(
        self,
        tell: Callable[[int, Move, Episode, tuple[Move, ...]], None] = lambda *told: None,
        token: Callable[[int, str], None] | None = None,
        over: Callable[[int, Outcome], None] = lambda index, outcome: None,
    ) -> list[Outcome]:
        """All n games, and what is counted and logged of them. Raises ApiError where there is no draft."""
        server, settings = self.server, self.server.settings
        mode: Mode = "off" if self.mode == "shadow" else self.mode  # the review in the shadow comes after the reply

        async def one(index: int, game: Episode) -> Outcome:
            moves: list[Move] = []

            def made(move: Move, game: Episode) -> None:
                tell(index, move, game, tuple(moves))
                moves.append(move)

            outcome = await dance(
                game, server.agents, self.wish, mode=mode, rounds=self.rounds, opened=settings.opened, tell=made,
                token=None if token is None else lambda text: token(index, text),
            )  # fmt: skip
            over(index, outcome)
            return outcome

        tasks = [asyncio.create_task(one(i, game)) for i, game in enumerate(self.games)]
        try:
            outcomes = list(await asyncio.gather(*tasks))
        except (Down, TimeoutError) as error:
            server.figures.failed.labels("draft").inc()
            log("answer", "error", key=self.key, mode=self.mode, failed="draft", why=str(error) or "deadline")
            if isinstance(error, Down):
                raise ApiError(503, str(error), type="server_error", code="model_unavailable") from None
            message = f"no answer within {settings.deadline:g} s"
            raise ApiError(504, message, type="server_error", code="deadline_exceeded") from None
        finally:
            for task in tasks:
                task.cancel()
        seconds = time.monotonic() - self.began
        server.figures.latency.labels(self.mode).observe(seconds)
        for outcome in outcomes:
            if self.mode == "shadow":
                server.shadow(self.key, outcome, self.wish)
                if self.unchecked:
                    server.figures.unchecked.labels(self.key).inc()
            else:
                server.counted(self.key, outcome, id=self.reply.head["id"], ms=round(1000 * seconds))
        return outcomes


def _settled(text: str, stop: Sequence[str]) -> str:
    """What of an unfinished text may be sent: no half letter, and nothing that may yet become a stop string."""
    text = text.rstrip("\ufffd")
    held = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
    return text[: len(text) - held]


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
    """The client learns nothing of it; uvicorn logs the traceback."""
    body = ApiError(500, "internal error", type="server_error", code="internal_error").body
    return JSONResponse(body, 500)
