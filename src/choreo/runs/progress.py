"""How work tells of itself: to callbacks, and by stopping at a safe point when it is asked to."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from choreo import parallel
from choreo.runs.callbacks import Callback, notify
from choreo.runs.json_lines import line, wanted


class Progress:
    """Passes on what happens to `callbacks`. Without callbacks it is silent.

    Use it as a context manager. While it is open, the first SIGINT or SIGTERM sets `interrupted`: the work finishes its
    step, saves, and raises Interrupted. A SIGINT after that stops at once. A SIGTERM after that does not, since Slurm
    sends it to every process of a step, and a rank may get it twice. Outside the main thread signals are left alone.

    terminated: whether SIGTERM came, to this rank or, once the work has stopped, to any.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()):
        self.callbacks = tuple(callbacks)
        self.terminated = False
        self._interrupted = False  # by a signal; a second SIGINT then stops at once
        self._stop_wanted = False  # by a callback
        self._alarms: set[str] = set()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Progress:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {s: signal.signal(s, self._interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        failed: list[Exception] = []
        for callback in self.callbacks:
            try:
                callback.on_end()
            except Exception as error:  # every callback hears the end; what stopped the work is not hidden
                failed.append(error)
        if failed and kind is None:
            raise failed[0]

    @property
    def interrupted(self) -> bool:
        """Whether a signal or a callback has asked the work to stop: of several ranks, any of them."""
        self._stop_wanted = self._stop_wanted or any(callback.wants_stop() for callback in self.callbacks)
        if not parallel.agreed(self._interrupted or self._stop_wanted):
            return False
        self.terminated = parallel.agreed(self.terminated)
        return True

    @interrupted.setter
    def interrupted(self, value: bool) -> None:
        self._interrupted = value

    @property
    def interrupted_here(self) -> bool:
        """As `interrupted`, of this process alone: no other rank is asked, so ranks need not ask together."""
        return self._interrupted or self._stop_wanted

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
        again, self._interrupted = self._interrupted, True
        self.terminated = self.terminated or number == signal.SIGTERM
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if again or not parallel.speaks():
            return
        # Not through the stream: a handler may run in the middle of a write to it, and buffers are not reentrant.
        with contextlib.suppress(OSError, ValueError):
            text = "stopping as soon as nothing is lost by it; Ctrl-C to stop at once"
            text = line("warning", "message", message=text) if wanted() else f"\n{text}"
            os.write(sys.stderr.fileno(), f"{text}\n".encode())
