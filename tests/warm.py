"""A Python that has loaded PyTorch, transformers and choreo before it is asked to run something.

A start of `choreo` takes seconds, nearly all of them for imports, and tests start dozens of commands. `Warm(...)` runs
one in a process of its own, as `subprocess.Popen([sys.executable, ...])` does, but as a fork of a process that has
imported everything and computed nothing. The fork has its own pid, session, environment, folder and streams. It can be
killed, and it is killed when whoever asked for it ends.

    python tests/warm.py serve SOCKET PID        run what is asked, until process PID ends
    python tests/warm.py ask SOCKET ARGUMENT...  run `python ARGUMENT...` there, with this process's streams
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ENVIRONMENT = dict(os.environ)  # before any test changes it


@cache
def address() -> str:
    """The socket of the server of this run of pytest: of all its workers. The first to ask starts it."""
    pytest = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    folder = Path(tempfile.gettempdir()) / f"choreo-tests-{pytest}"
    path = str(folder / "warm")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        subprocess.Popen([sys.executable, __file__, "serve", path, str(pytest)], env=ENVIRONMENT)
    deadline = time.monotonic() + 240
    while not os.path.exists(path):
        assert time.monotonic() < deadline, f"no server of warm processes; remove {folder} and try again"
        time.sleep(0.05)
    return path


class Warm:
    """`python ARGUMENTS` in a fork of the server: the part of subprocess.Popen that tests use.

    streams: descriptors for standard input, output and error; where None, /dev/null.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | str = ".",
        streams: Sequence[int | None] = (None, None, None),
        server: str | None = None,
    ):
        self.returncode: int | None = None
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(server or address())
        asked = json.dumps([list(arguments), dict(os.environ if env is None else env), os.path.abspath(cwd)]).encode()
        null = os.open(os.devnull, os.O_RDWR)
        head = len(asked).to_bytes(8, "big")
        socket.send_fds(self._socket, [head], [null if stream is None else stream for stream in streams])
        os.close(null)
        self._socket.sendall(asked)
        self.pid = int.from_bytes(_read(self._socket, 8), "big")

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except TimeoutError:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; of one that a signal ended, its number below 0. Raises TimeoutError."""
        if self.returncode is None:
            self._socket.settimeout(timeout)
            try:
                self.returncode = int.from_bytes(_read(self._socket, 8), "big", signed=True)
            except BlockingIOError:
                raise TimeoutError from None
            self._socket.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(arguments: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS`, to its end: its exit code, and what it wrote."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        code = Warm(arguments, streams=(None, out.fileno(), error.fileno()), **more).wait()
        for stream in (out, error):
            stream.seek(0)
        return subprocess.CompletedProcess(["python", *arguments], code, out.read(), error.read())


def command(path: Path, *before: str) -> Path:
    """Makes an executable file at `path` that runs `python BEFORE... ARGUMENT...` in a fork of the server."""
    words = " ".join(f'"{word}"' for word in (sys.executable, "-S", __file__, "ask", address(), *before))
    path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    path.chmod(0o755)
    return path


def _read(stream: socket.socket, size: int) -> bytes:
    read = stream.recv(size, socket.MSG_WAITALL)
    if len(read) < size:
        raise EOFError("the server of warm processes ended")
    return read


def _serve(path: str, pytest: int) -> None:
    """Answers every connection by a fork, which forks what was asked for and waits for it."""
    _load()
    gc.collect()
    gc.freeze()  # a collection in a fork would touch, and so copy, every page
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + "-soon")
    listener.listen(64)
    os.rename(path + "-soon", path)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who waits for each has nothing to say at its end
    while _lives(pytest):
        if not select.select([listener], [], [], 1)[0]:
            continue
        asked, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            return _answer(asked)
        asked.close()
    shutil.rmtree(Path(path).parent)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _answer(asked: socket.socket) -> None:
    """Runs in a process of its own. What was asked for runs in another, in which this function's caller ends."""
    head, streams, *_ = socket.recv_fds(asked, 8, 3)
    arguments, environment, folder = json.loads(_read(asked, int.from_bytes(head, "big")))
    if pid := os.fork():
        asked.sendall(pid.to_bytes(8, "big"))
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            if select.select([asked], [], [], 0.01)[0]:  # nobody waits for it any more
                os.kill(pid, signal.SIGKILL)
                os._exit(0)
        asked.sendall(os.waitstatus_to_exitcode(ended[1]).to_bytes(8, "big", signed=True))
        os._exit(0)
    asked.close()
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    _end(_run, arguments)


def _end(run: Any, arguments: list[str]) -> None:
    """Runs, and ends as Python does, but does not take apart what was imported, which takes seconds in a fork."""
    code: Any = 0
    try:
        run(arguments)
    except SystemExit as said:
        code = said.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exception(error)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as at the end of every program
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _run(arguments: list[str]) -> None:
    """What `python ARGUMENTS` does, of -m, -c and a file."""
    import runpy

    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    kind, *rest = arguments
    if kind == "-m":
        sys.argv, sys.path[0] = rest, os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = arguments, str(Path(kind).parent)
        runpy.run_path(kind, run_name="__main__")


def _load() -> None:
    """Imports what commands import. Nothing may be computed here: threads do not outlive a fork."""
    import importlib
    import pkgutil

    import choreo

    for module in pkgutil.walk_packages(choreo.__path__, "choreo."):
        # No command imports the integrations, and verifiers is installed in a place of its own.
        if not module.name.endswith("__main__") and not module.name.startswith("choreo.integrations."):
            importlib.import_module(module.name)
    for name in (
        "torch._dynamo",
        "uvicorn",
        *(
            f"transformers.models.{model}.modeling_{model}"
            for model in ("auto", "llama", "qwen3", "gemma3", "gpt_neox")
        ),
    ):
        importlib.import_module(name)


if __name__ == "__main__":
    what, where, *asked_for = sys.argv[1:]
    if what == "serve":
        _serve(where, int(asked_for[0]))
    else:
        process = Warm(asked_for, streams=(0, 1, 2), server=where)

        def pass_on(number: int, _: Any) -> None:  # not by send_signal, whose poll would end the wait below
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, pass_on)
        code = process.wait()
        sys.exit(code if code >= 0 else 128 - code)
