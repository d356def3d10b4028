"""An HTTP server on 127.0.0.1 for stand-ins: JSON in, JSON out, one function for each path."""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Answer = Callable[[Any], tuple[int, Any]]


class StandIn(ABC):
    """Serves until closed. A subclass says `get` and `post`, and calls `listen` last."""

    def listen(self, port: int = 0) -> None:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self.answer(stand_in.get(), None)

            def do_POST(self) -> None:
                self.answer(stand_in.post(), stand_in.received(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, paths: Mapping[str, Answer], body: Any) -> None:
                if not stand_in.allows(self.headers):
                    return self.reply(401, {"detail": "Unauthorized"})
                if self.path not in paths:
                    return self.reply(404, {"detail": "Not Found"})
                try:
                    self.reply(*paths[self.path](body))
                except ConnectionAbortedError:
                    self.close_connection = True

            def reply(self, status: int, told: Any) -> None:
                content = told if isinstance(told, bytes) else json.dumps(told).encode()
                self.send_response(status)
                if isinstance(told, bytes):
                    self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: object) -> None:
                pass  # clients that hang up

        self._server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @abstractmethod
    def get(self) -> Mapping[str, Answer]:
        """What answers a GET, by path."""

    @abstractmethod
    def post(self) -> Mapping[str, Answer]:
        """What answers a POST, by path."""

    def allows(self, headers: Mapping[str, str]) -> bool:
        """Whether who asks may."""
        return True

    def received(self, content: bytes) -> Any:
        """The body of a POST."""
        return json.loads(content)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
