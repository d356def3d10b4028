"""What `choreo watch` does: its page on this machine until it is told to stop."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from choreo.clients.http import key_in
from choreo.server.figures import log
from choreo.server.keys import new_key, own_key
from choreo.server.listening import HttpServer, listen
from choreo.server.run import KEY_VARIABLE
from choreo.watch.app import watch_page
from choreo.watch.watcher import Watcher

HOST = "127.0.0.1"  # the games of a run are nobody else's; from elsewhere one comes through a tunnel


def serve_watch(folder: Path, port: int) -> None:
    """Serves until SIGINT or SIGTERM. The key is that in CHOREO_API_KEY, or drawn for this start. Raises BadInput."""
    given = key_in(KEY_VARIABLE)
    with Watcher(folder) as watcher:
        asyncio.run(_until_stopped(watcher, given or new_key(), port, drawn=not given))


async def _until_stopped(watcher: Watcher, secret: str, port: int, *, drawn: bool) -> None:
    http = HttpServer.of(watch_page(watcher, [own_key(secret)]), lifespan="off", timeout_graceful_shutdown=5)
    listener, address = listen(HOST, port)
    http.stop_on_signals()
    log("serving", address=address, folder=str(watcher.folder), runs=len(watcher.runs), pid=os.getpid())
    print(f"{address}/#key={secret}" if drawn else f"{address}/ (the key is in {KEY_VARIABLE})", flush=True)
    await http.serve(sockets=[listener])
    log("stopped")
