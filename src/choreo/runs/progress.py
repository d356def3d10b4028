"""How work tells of itself: to callbacks, and by stopping at a safe point when it is asked to."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from choreo.runs.callbacks import Callback, notify


class Progress:
    """Passes on what happens to `callbacks`. Without callbacks it is silent.

    Use it as a context manager. While it is open, the first SIGINT or SIGTERM sets `interrupted`: the work finishes its
    step, saves, and raises Interrupted. A second one stops at once. Outside the main thread it leaves signals alone.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()):
        self.callbacks = tuple(callbacks)
        self._interrupted = False
        self._alarms: set[str] = set()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Progress:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {s: signal.signal(s, self._interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        notify(self.callbacks, "on_end")
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def interrupted(self) -> bool:
        """Whether a signal or a callback asks the work to stop."""
        return self._interrupted or any(callback.wants_stop() for callback in self.callbacks)

    @interrupted.setter
    def interrupted(self, value: bool) -> None:
        self._interrupted = value

    def start(self, label: str, total: int, done: int = 0) -> None:
        """A phase of `total` steps begins. `done` of them were done before a resume."""
        notify(self.callbacks, "on_phase", label, total, done)

    def advance(self, done: int, figures: Mapping[str, float] | None = None, alarms: Sequence[str] = ()) -> None:
        """`done` steps of the phase are done. An alarm is reported when it starts, not at every step."""
        for alarm in alarms:
            if alarm not in self._alarms:
                self.say(f"! step {done}: {alarm}")
        self._alarms = set(alarms)
        notify(self.callbacks, "on_progress", done, figures or {})

    def say(self, text: str) -> None:
        """One lasting line."""
        notify(self.callbacks, "on_message", text)

    def _interrupt(self, number: int, frame: Any) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        # Not through the stream: a handler may run in the middle of a write to it, and buffers are not reentrant.
        with contextlib.suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), b"\nstopping as soon as nothing is lost by it; once more to stop at once\n")
