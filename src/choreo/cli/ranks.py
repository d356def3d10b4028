"""`choreo train --processes N`: the same command in N ranks of this machine.

Ranks find each other as torchrun's do, by its environment variables. Over several machines torchrun starts them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from choreo.cli.output import say
from choreo.clients.server_process import free_port

POLL, GRACE = 0.05, 20.0  # seconds: between two looks, and for the others to end when one has failed


def run_in_ranks(processes: int, words: Sequence[str], run: Path) -> int:
    """Runs `choreo WORDS` in so many ranks, to its end. Returns the exit code: of the first rank that fails, if any.

    run: the folder of the run, which a message names.
    SIGINT and SIGTERM reach every rank as they are, and SIGHUP as SIGINT. When a rank dies of a signal, the others are
    ended.
    """
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    ranks: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: Any) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if number == signal.SIGTERM else signal.SIGINT)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        for rank in range(processes):
            own = {"OMP_NUM_THREADS": threads, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", "choreo.cli", *words]
            # A session of its own: a signal reaches it from here alone, and once.
            ranks.append(subprocess.Popen(command, env={**os.environ, **own}, start_new_session=True))
        return _wait(ranks, run)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(ranks: Sequence[subprocess.Popen[bytes]], run: Path) -> int:
    """The exit code of the first rank that fails, once all have ended, or soon after."""
    failed, deadline = 0, float("inf")
    running = True
    while running and time.monotonic() < deadline:
        running = any(process.poll() is None for process in ranks)
        for rank, process in enumerate(ranks):
            code = process.poll()
            if code and code < 0:
                say(f"choreo: rank {rank} ended by signal {-code}; choreo train --resume {run} goes on")
                return 1
            if code and not failed:
                failed, deadline = code, time.monotonic() + GRACE
        time.sleep(POLL)
    return failed
