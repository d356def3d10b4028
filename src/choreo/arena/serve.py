"""What `choreo arena serve` does: the raters' page on this machine until it is told to stop."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from choreo.arena.app import raters_page
from choreo.arena.store import Arena
from choreo.errors import BadInput
from choreo.server.figures import log
from choreo.server.listening import HttpServer, listen

HOST = "127.0.0.1"  # raters elsewhere come through a tunnel, or a proxy that has TLS: keys must not travel in the clear


def serve_arena(folder: Path, port: int) -> None:
    """Serves until SIGINT or SIGTERM, then answers what has been asked. Raises BadInput where nobody may rate."""
    with Arena(folder) as arena:
        if not arena.rater_keys():
            raise BadInput(f"{folder}: has no raters yet (choreo arena rater {folder} NAME)")
        asyncio.run(_until_stopped(arena, port))


async def _until_stopped(arena: Arena, port: int) -> None:
    http = HttpServer.of(raters_page(arena), lifespan="off", timeout_graceful_shutdown=10, limit_concurrency=512)
    listener, address = listen(HOST, port)
    http.stop_on_signals()
    log("serving", address=address, arena=str(arena.folder), items=len(arena.items), pid=os.getpid())
    print(
        f"{address}/ for {', '.join(key.name for key in arena.rater_keys())}, each by the link with their key",
        flush=True,
    )
    await http.serve(sockets=[listener])
    log("stopped")
