"""The lock of a run folder: one process writes a run, and whoever looks at it can tell that it does."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from choreo.errors import BadInput, Unavailable

LOCK = ".lock"
PATIENCE = 0.5  # seconds. Whoever asks `is_held` has the lock for a moment


def take(path: Path) -> int:
    """The descriptor of the lock of the run at `path`, which is let go by closing it. Raises Unavailable where another
    process has it, and BadInput where nothing can be written."""
    try:
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise BadInput(f"{path}: cannot write here: {error.strerror}") from None
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise Unavailable(f"{path}: another process is writing this run") from None
            time.sleep(0.005)


def is_held(path: Path) -> bool:
    """Whether a process is writing the run at `path`. Nothing is written: the lock is tried for a moment, shared."""
    try:
        descriptor = os.open(path / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
