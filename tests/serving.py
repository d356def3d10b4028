"""A real server in a process of its own, on a small run of the microworld: what the tests of `serve` talk to."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx2
import uvicorn
from starlette.applications import Starlette
from warm import Warm

from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.runs.folder import Run

KEY = "sk-test-of-everything"


def make_run(path: Path, **sections: Any) -> Path:
    """A run folder without a checkpoint: it serves the untrained pair, whose reviews of one answer differ by chance."""
    base = {"model": {"base": "coins-llama"}}
    recipe = WaltzRecipe.model_validate({"seed": 3, "checkpoint_every": 2, **base, **sections})
    with Run.create(path, recipe):
        pass
    return path


class Started:
    """A server of choreo in a process of its own. arguments: of the command line. logs: its JSON lines so far."""

    def __init__(self, *arguments: str, environment: dict[str, str]):
        (out, into_out), (log, into_log) = os.pipe(), os.pipe()
        self.process = Warm(
            ["-m", "choreo.cli", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            streams=(None, into_out, into_log),
        )
        os.close(into_out)
        os.close(into_log)
        self.out, self._log = os.fdopen(out), os.fdopen(log)
        self.logs: list[dict[str, Any]] = []
        self.rest: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait("serving", 240)["address"]

    def _read(self) -> None:
        for line in self._log:
            try:
                self.logs.append(json.loads(line))
            except ValueError:
                self.rest.append(line)

    def wait(self, event: str, seconds: float = 60, after: int = 0, **said: Any) -> dict[str, Any]:
        """The first log line of `event` from line `after` on that says all of `said`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in self.logs[after:]:
                if line["event"] == event and said.items() <= line.items():
                    return line
            assert self.process.poll() is None, f"the server ended: {self.rest}"
            time.sleep(0.02)
        raise AssertionError(f"no {event!r} in {self.logs[-3:]} {self.rest}")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Serving(Started):
    """`choreo serve RUN …` on a free port."""

    def __init__(self, run: Path | None, *options: str, key: str | None = KEY):
        command = ["serve", *([str(run)] if run else []), "--port", "0", *options]
        super().__init__(*command, environment={"CHOREO_API_KEY": key} if key else {})
        self.http = httpx2.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=120)
        while True:
            try:
                self.http.get("/health")
                break
            except httpx2.TransportError:
                time.sleep(0.05)

    def ask(self, text: str = "What is 3 plus 4?", **more: Any) -> httpx2.Response:
        body = {"model": "run", "messages": [{"role": "user", "content": text}], **more}
        return self.http.post("/v1/chat/completions", json=body)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        total = 0.0
        for line in self.http.get("/metrics").text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.split("{")[0] == f"choreo:{name}" and all(f'{k}="{v}"' in sample for k, v in labels.items()):
                total += float(value)
        return total

    def close(self) -> None:
        super().close()
        self.http.close()


@contextmanager
def listening(app: Starlette) -> Iterator[httpx2.Client]:
    """`app` behind uvicorn in a thread, and a client of it."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    headers = {"Authorization": f"Bearer {KEY}"}
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
