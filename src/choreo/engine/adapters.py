"""Adapters on vLLM servers: written in PEFT's format, loaded on every server under a name that is never used twice.

A server keeps the keys and values of prefixes by the adapter's name. Other weights under a name that was used before
would be read with the old ones' keys and values.
"""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from choreo.clients.vllm import VllmServer
from choreo.engine.export import write_adapter
from choreo.engine.policies import LowRank
from choreo.errors import BadInput, opening


class Adapters:
    """What is loaded on the servers. folder: where adapters are written; "" is a temporary one."""

    def __init__(self, servers: Sequence[VllmServer], folder: str):
        self._servers = servers
        self._temporary = None if folder else TemporaryDirectory(prefix="choreo-adapters-")
        self._folder = Path(folder or self._temporary.name).absolute()  # type: ignore[union-attr]
        self._token = uuid4().hex[:8]  # a resumed run gives new weights to a version that it had before
        self._users, self._retired, self._lock = Counter[str](), set[str](), threading.Lock()

    def load(self, policy: LowRank, model: Any, name: str) -> str:
        """Loads the adapter on every server, or on none. Returns its whole name. Raises BadInput where one cannot."""
        whole = f"choreo-{name}-{self._token}"
        with opening(self._folder / whole, "cannot be written"):
            write_adapter(policy, model, self._folder / whole)
        try:
            for server in self._servers:
                server.load(whole, str(self._folder / whole))
        except BadInput:
            self.retire(whole)
            raise
        return whole

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """While anything is drawn by the adapter, it stays loaded."""
        with self._lock:
            self._users[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._users[name] -= 1
            self._sweep()

    def retire(self, name: str) -> None:
        """Unloads the adapter on every server as soon as nothing uses it, and removes its files."""
        with self._lock:
            self._retired.add(name)
        self._sweep()

    def close(self) -> None:
        """Removes the temporary folder."""
        if self._temporary:
            self._temporary.cleanup()

    def _sweep(self) -> None:
        with self._lock:
            idle = [name for name in self._retired if not self._users[name]]
            self._retired -= {*idle}
        for name in idle:
            for server in self._servers:
                with suppress(BadInput):  # a server that is gone has nothing loaded
                    server.unload(name)
            shutil.rmtree(self._folder / name, ignore_errors=True)
