"""How a server of choreo listens: one socket, an address, and an end that a signal asks for."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette

from choreo.errors import BadInput


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A socket that listens, and its address as http://HOST:PORT. port: 0 takes a free one. Raises BadInput."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise BadInput(f"--host {host} --port {port}: {error.strerror}") from None
    # asyncio does this only where a socket names its protocol, and this one does not. Without it a reply's body waits
    # 40 ms for the client to acknowledge its head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener, f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


class HttpServer(uvicorn.Server):
    """uvicorn's server, but a signal ends it with code 0 when all is answered, and a second signal ends it at once."""

    @classmethod
    def of(cls, app: Starlette, **settings: Any) -> HttpServer:
        """The server of `app`. settings: of uvicorn, beside those that every server of choreo has."""
        return cls(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, **settings))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    def stop_on_signals(self) -> None:
        """Lets SIGINT and SIGTERM end the server. Call it inside the running loop."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self.stop)
