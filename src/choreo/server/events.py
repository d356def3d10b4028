"""Server-sent events, and work that ends when the client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from traceback import format_tb
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from choreo.server.api_error import ApiError, internal
from choreo.server.apis import Event, Writer
from choreo.server.figures import log
from choreo.server.incoming import error_response

T = TypeVar("T")
Push = Callable[[Sequence[Event]], None]


class ClientLeft(Exception):
    """The client has closed its connection."""


class EventStream(Response):
    """Server-sent events, until the client leaves. A failure before the first event is an ordinary error reply; a later
    one ends the stream with an error event and without the end that the API has for a stream.

    reply: writes both ends. close: called at the end in every case. left: called before it where the client has left.
    on_status: called with the HTTP status once it is known; 499 where the client has left.
    """

    def __init__(
        self,
        play: Callable[[Push], Awaitable[None]],
        reply: Writer,
        close: Callable[[], None],
        left: Callable[[], None],
    ):
        self.status_code, self.background = 200, None
        self.on_status: Callable[[int], None] = lambda status: None
        self._play, self._reply, self._close, self._left = play, reply, close, left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events: asyncio.Queue[bytes | None] = asyncio.Queue()
        started = False

        def push(several: Sequence[Event]) -> None:
            for event in several:
                events.put_nowait(_event(event))

        async def produce() -> None:
            try:
                await self._play(push)
                events.put_nowait(self._reply.done)
            except ApiError as error:
                if not started and events.empty():
                    raise
                push([self._reply.error(error)])
            except Exception as error:  # a bug, which must not break the connection
                if not started and events.empty():
                    raise
                log("stream failed", "critical", why=type(error).__name__, where=format_tb(error.__traceback__))
                push([self._reply.error(internal())])
            finally:
                events.put_nowait(None)

        async def pump() -> None:
            nonlocal started
            task = asyncio.create_task(produce())
            try:
                while (event := await events.get()) is not None:
                    if not started:
                        started = True
                        await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                await task
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                task.cancel()

        try:
            await while_there(receive, pump())
            self.on_status(200)
        except ClientLeft:
            self._left()
            self.on_status(499)
        except ApiError as error:
            self.on_status(error.status)
            await error_response(error, scope["path"])(scope, receive, send)
        finally:
            self._close()


_EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. When the client leaves, `work` is cancelled and ClientLeft is raised."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.create_task(work), asyncio.create_task(left())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        task.cancel()
        gone.cancel()


def _event(data: Event) -> bytes:
    """An event is named by its type, in the APIs that have one."""
    name = f"event: {data['type']}\n" if "type" in data else ""
    return f"{name}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
