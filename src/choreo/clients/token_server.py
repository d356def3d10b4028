"""What clients of servers that speak in token ids have in common: requests, retries, errors in one line."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar
from weakref import WeakSet

from choreo.clients.http import AGAIN, key_in
from choreo.config.addresses import LOOPBACK
from choreo.errors import BadInput, Unavailable, first_line
from choreo.text.replies import shortened

try:
    import httpx2
except ImportError:
    raise BadInput('a server that samples needs httpx2: pip install "choreo-rl[endpoint]"') from None

WAITS = (0.25, 0.5, 1.0)  # seconds before a request for a completion, which changes nothing, is sent again
TIMEOUT, CONNECT = 600.0, 10.0  # seconds: a busy server may let a completion wait
CONCURRENCY = 64  # requests at a time; the server makes batches of them


class TokenServer:
    """One server. Every method raises Unavailable where it does not answer, BadInput where it refuses or makes no
    sense; both name its url. Methods may be called from several threads.

    kind: whose server it is. key: the variable from which such a server itself takes its key.
    """

    kind: ClassVar[str]
    key: ClassVar[str]

    def __init__(self, url: str):
        self.url = url.rstrip("/").removesuffix("/v1")
        key = key_in(self.key)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx2.Limits(max_connections=CONCURRENCY)
        try:
            here = httpx2.URL(self.url).host in LOOPBACK  # which no proxy serves
            self._http = httpx2.Client(base_url=self.url, headers=headers, limits=limits, trust_env=not here)
        except httpx2.InvalidURL as error:
            raise BadInput(f"{url}: is no address: {first_line(error)}") from None
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._closed = threading.Event()

    def close(self) -> None:
        """Ends what is being asked for, too: it raises Unavailable in its thread."""
        self._closed.set()
        for one in [*self._sockets]:  # to close a socket wakes no thread that reads from it
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._http.close()

    def _patiently(self, path: str, body: Mapping[str, Any], patience: float = math.inf) -> httpx2.Response:
        """patience: the seconds that it may take in all, however often it is asked for."""
        until = time.monotonic() + patience
        for wait in WAITS:
            try:
                reply = self._send("POST", path, body, until)
            except Unavailable:
                if time.monotonic() + wait > until:
                    raise
            else:
                if reply.status_code not in AGAIN and reply.status_code < 500:
                    return reply
            self._closed.wait(wait)
        return self._send("POST", path, body, until)

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, until: float = math.inf
    ) -> httpx2.Response:
        """until: in monotonic seconds, when the wait for an answer is over."""
        left = max(until - time.monotonic(), 0.01)
        timeout = httpx2.Timeout(min(TIMEOUT, left), connect=min(CONNECT, left))
        if self._closed.is_set():
            raise Unavailable(f"{self.url}: is not asked any more")
        try:
            return self._http.request(method, path, json=body, timeout=timeout, extensions={"trace": self._connected})
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError) as error:  # RuntimeError: closed meanwhile
            raise Unavailable(f"{self.url}: does not answer: {first_line(error)}") from None

    def _connected(self, name: str, told: Mapping[str, Any]) -> None:
        """Keeps the socket of a new connection, of which httpx2 tells as `name`."""
        if name in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._sockets.add(told["return_value"].get_extra_info("socket"))
            if self._closed.is_set():
                raise OSError("closed")

    def _json(self, reply: httpx2.Response) -> Any:
        if reply.status_code >= 500:
            raise Unavailable(f"{self.url}: {message_of(reply)}")
        if reply.status_code != 200:
            raise BadInput(f"{self.url}: {message_of(reply)}")
        try:
            return reply.json()
        except ValueError:
            raise BadInput(f"{self.url}: answers no JSON: is it a {self.kind} server?") from None


def message_of(reply: httpx2.Response) -> str:
    """The status of a reply that refuses, and what it says, in one line."""
    try:
        text = str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = reply.text
    return f"HTTP {reply.status_code} {shortened(text, 200)}"
