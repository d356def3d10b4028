"""A small OpenAI-compatible server that misbehaves on demand: what the endpoint tests talk to."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = dict[str, Any] | bytes
GOOD = '{"reasoning": "It declines.", "harmful": "no", "refusal": "full", "over_refusal": "yes"}'


@dataclass(frozen=True)
class Say:
    """What the server does with one request: waits `delay` seconds, then sends `body` under `status`."""

    body: Answer = field(default_factory=dict)
    status: int = 200
    delay: float = 0.0
    headers: tuple[tuple[str, str], ...] = ()
    drip: float = 0.0  # seconds between the bytes of the body


def chat(text: str | None, finish: str = "stop", refusal: str | None = None, usage: bool = True) -> dict[str, Any]:
    """A chat.completion object; 100 tokens of prompt and 10 of completion."""
    message = {"role": "assistant", "content": text, "refusal": refusal}
    said: dict[str, Any] = {"object": "chat.completion", "choices": [{"message": message, "finish_reason": finish}]}
    return said | ({"usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}} if usage else {})


class Stub:
    """Serves on 127.0.0.1 until closed. `script(body, n)` says what happens to the n-th request (from 1) of its row.

    seen: bodies in the order they came; served: rows that got a whole reply with status 200.
    """

    def __init__(self, script: Callable[[dict[str, Any], int], Say]):
        self.seen: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.served: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        lock, tries, stub = threading.Lock(), Counter[str](), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                body, row = json.loads(raw), raw.decode()
                with lock:
                    stub.seen.append(body)
                    stub.paths.append(self.path)
                    stub.headers.append(dict(self.headers))
                    tries[row] += 1
                    n = tries[row]
                    stub.at_once += 1
                    stub.most_at_once = max(stub.most_at_once, stub.at_once)
                say = script(body, n)
                time.sleep(say.delay)
                with lock:
                    stub.at_once -= 1
                content = say.body if isinstance(say.body, bytes) else json.dumps(say.body).encode()
                try:
                    self.send_response(say.status)
                    for name, value in say.headers:
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    if say.drip:
                        for i in range(len(content)):
                            self.wfile.write(content[i : i + 1])
                            time.sleep(say.drip)
                    else:
                        self.wfile.write(content)
                except OSError:
                    self.close_connection = True
                    return  # the client had enough
                if say.status == 200:
                    with lock:
                        stub.served[row] += 1

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass  # clients that hang up or are killed

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Stub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
