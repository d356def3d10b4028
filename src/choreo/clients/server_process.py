"""A server that choreo starts for itself, on this machine alone. It ends with the process that started it, however that
ends.

As a module, `python -m choreo.clients.server_process COMMAND…` runs the command until its standard input is closed. The
process that started it holds the other end, which the system closes for it even after kill -9.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkstemp

from choreo.errors import BadInput, Interrupted, Unavailable

WAIT = 1800.0  # seconds that a server may take until it answers: a large model is read from a disk
POLL, GRACE = 0.1, 20.0  # seconds: between two looks, and between SIGTERM and SIGKILL
LATE = 2.0  # seconds in which a server may end after it has hung up


@contextmanager
def running_server(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    answers: Callable[[], bool],
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Runs a server's command. The block begins when the server answers, and the server ends after it.

    name: whose server it is, for messages. environment: all of its variables. answers: whether the server answers.
    stopping: whether to wait for that no longer.

    Raises BadInput where there is no such command or it ends before it answers, Unavailable where it does not answer
    in time or ends later, Interrupted where `stopping` says so. What it printed is kept in a file where a message names
    it.
    """
    number, log = mkstemp(prefix="choreo-server-", suffix=".log")
    tied = [sys.executable, "-m", "choreo.clients.server_process", *command]
    with open(number, "wb") as out:
        process = subprocess.Popen(
            tied,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            start_new_session=True,  # a Ctrl-C for the whole group must not end it before choreo has ended
        )
    assert process.stdin is not None
    named = False
    try:
        try:
            _wait(process, name, log, answers, stopping)
        except BadInput:
            named = True
            raise
        try:
            yield
        except Unavailable as error:
            with suppress(subprocess.TimeoutExpired):  # it may have hung up a moment before its end
                process.wait(LATE)
            if process.poll() is None:
                raise
            named = True
            raise _ended(f"{error}; {name}", process, log) from None
    finally:
        process.stdin.close()
        process.wait()
        if not named:
            Path(log).unlink(missing_ok=True)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _wait(
    process: subprocess.Popen[bytes], name: str, log: str, answers: Callable[[], bool], stopping: Callable[[], bool]
) -> None:
    """Waits until the server answers. Raises what `running_server` raises before it is entered."""
    until = time.monotonic() + WAIT
    while not answers():
        if stopping():
            raise Interrupted(f"{name} was starting; nothing was sampled yet")
        if process.poll() is not None:
            raise BadInput(str(_ended(name, process, log)))
        if time.monotonic() > until:
            raise Unavailable(f"{name}: does not answer after {WAIT / 60:.0f} minutes; what it printed: {log}")
        time.sleep(POLL)


def _ended(what: str, process: subprocess.Popen[bytes], log: str) -> Unavailable:
    return Unavailable(f"{what}: ended with code {process.returncode}; what it printed: {log}")


def _run_tied(command: Sequence[str]) -> int:
    """Runs the command until it ends, or standard input does. Returns its exit code."""
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127

    def end(number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)

    def watch() -> None:
        while os.read(0, 1):
            pass
        end(signal.SIGTERM)
        time.sleep(GRACE)
        end(signal.SIGKILL)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # a scheduler sends them to every process
        signal.signal(number, lambda *_: end(signal.SIGTERM))
    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    end(signal.SIGKILL)  # what it has started and not ended
    return code if code >= 0 else 128 - code  # as shells say it


if __name__ == "__main__":
    sys.exit(_run_tied(sys.argv[1:]))
