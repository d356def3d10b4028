"""Several trainings of a study at the same time: each is a process of `choreo train`, with a log of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from choreo.errors import BadInput, Interrupted
from choreo.runs.progress import Progress

Process = subprocess.Popen[bytes]
POLL = 0.1  # seconds


def train_in_parallel(paths: Sequence[Path], jobs: int, logs: Path, progress: Progress) -> None:
    """Resumes the runs at `paths`, `jobs` at a time, until all are finished. logs/NAME.log holds the output of each.

    Each process takes cores / jobs threads, or as many as OMP_NUM_THREADS names. A stop, or the first run that fails,
    stops the others as Ctrl-C does, with their state saved. Raises Interrupted after a stop, and BadInput with the last
    line of the log where a run fails.
    """
    waiting, running, failed = list(paths), dict[Path, Process](), list[Path]()
    stopping = False
    logs.mkdir(exist_ok=True)
    progress.start(f"runs, {jobs} at a time", len(paths))
    try:
        while running or (waiting and not stopping):
            if (failed or progress.interrupted) and not stopping:
                stopping = True
                for process in running.values():
                    process.send_signal(signal.SIGINT)
            while waiting and len(running) < jobs and not stopping:
                path = waiting.pop(0)
                running[path] = _begin(path, logs, jobs)
            time.sleep(POLL)
            for path in [path for path, process in running.items() if process.poll() is not None]:
                if running.pop(path).returncode == 0:
                    progress.advance(len(paths) - len(waiting) - len(running))
                elif not stopping:
                    failed.append(path)
    finally:
        for process in running.values():  # a second Ctrl-C, which does not wait
            process.kill()
    for path in failed:
        output = _log(path, logs).read_text(encoding="utf-8").strip().splitlines() or ["nothing"]
        raise BadInput(f"{path}: its training failed and said: {output[-1]} ({_log(path, logs)})")
    if progress.interrupted:
        raise Interrupted


def _begin(path: Path, logs: Path, jobs: int) -> Process:
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))
    command = [sys.executable, "-m", "choreo.cli", "train", "--resume", str(path)]
    with _log(path, logs).open("ab") as log:
        # A session of its own, so that Ctrl-C reaches it from here alone, and once.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )


def _log(path: Path, logs: Path) -> Path:
    return logs / f"{path.name}.log"
