"""From HTTP to a session and back: the routes (Starlette), and the short answers about the server itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from choreo.server.api_error import ApiError
from choreo.server.chat import chat
from choreo.server.events import EventStream
from choreo.server.guardrail import PATH, guardrail
from choreo.server.incoming import HANDLERS
from choreo.server.messages_api import MESSAGES, MESSAGES_PATH
from choreo.server.openai_requests import CHAT
from choreo.server.openai_responses import Health, Ready, ServedModel, ServedModels
from choreo.server.openapi import description
from choreo.server.pages import pages
from choreo.server.responses_api import RESPONSES
from choreo.server.state import Server

Handler = Callable[[Server, Request], Awaitable[Response]]
APIS = {"/v1/chat/completions": CHAT, "/v1/responses": RESPONSES, MESSAGES_PATH: MESSAGES}


def application(server: Server) -> Starlette:
    """All routes of `server`. At the end it waits for the reviews in the shadow, and stops the server's engine."""
    described = JSONResponse(description())  # made once: it takes 20 ms, and needs no key

    async def openapi(request: Request) -> Response:
        return Response(described.body, media_type="application/json")

    @asynccontextmanager
    async def lifespan(app: Starlette):
        yield
        await server.close()

    return Starlette(
        routes=[
            *(Route(path, _counted(partial(chat, api), server), methods=["POST"]) for path, api in APIS.items()),
            Route(PATH, _counted(guardrail, server), methods=["POST"]),
            Route("/v1/models", partial(models, server)),
            Route("/v1/models/{model}", partial(models, server)),
            Route("/health", health),
            Route("/ready", partial(ready, server)),
            Route("/metrics", partial(metrics, server)),
            Route("/openapi.json", openapi),
            *pages(),
        ],
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )


async def models(server: Server, request: Request) -> Response:
    server.key(request)
    wanted, name = request.path_params.get("model"), server.settings.model
    if wanted is not None and wanted != name:
        raise ApiError(404, f"no model {wanted!r} here", param="model", code="model_not_found")
    model: ServedModel = {"id": name, "object": "model", "created": server.started, "owned_by": "choreo"}
    listed: ServedModels = {"object": "list", "data": [model]}
    return JSONResponse(model if wanted is not None else listed)


async def health(request: Request) -> Response:
    alive: Health = {"status": "alive"}
    return JSONResponse(alive)


async def ready(server: Server, request: Request) -> Response:
    server.key(request)
    if not server.alive():
        raise ApiError(503, "the engine does not run", type="server_error", code="not_ready")
    about: Ready = {
        "status": "ready",
        "model": server.settings.model,
        "mode": server.settings.mode,
        "rounds": server.settings.limits.rounds,
        "fingerprint": server.fingerprint,
        "example": server.settings.example,
    }
    return JSONResponse(about)


async def metrics(server: Server, request: Request) -> Response:
    if not server.key(request).metrics:
        raise ApiError(403, "this key does not allow metrics", type="permission_error", code="permission_denied")
    return Response(server.figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _counted(handler: Handler, server: Server) -> Callable[[Request], Awaitable[Response]]:
    """`handler`, with every request counted by its key and status."""

    async def counting(request: Request) -> Response:
        def count(status: int) -> None:
            server.figures.requests.labels(getattr(request.state, "key", ""), str(status)).inc()

        try:
            response = await handler(server, request)
        except ApiError as error:
            count(error.status)
            raise
        if isinstance(response, EventStream):
            response.on_status = count  # its status is not known yet
        else:
            count(response.status_code)
        return response

    return counting
