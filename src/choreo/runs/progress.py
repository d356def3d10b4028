"""Progress for people: a bar with the figures that matter on a terminal, plain lines elsewhere.

Always on the error stream, so that standard output carries results alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

_PLAIN_SECONDS = 5.0  # between plain lines, so that a log of hours stays readable
_RATES = {"asr", "orr", "ftr", "accuracy", "rate", "share", "degenerate", "gradient"}


class Progress:
    """Use as a context manager. While it is open, the first SIGINT or SIGTERM sets `interrupted`, for the
    work to finish its step and save; a second one stops at once.
    """

    def __init__(self, stream: TextIO | None = None):
        self.interrupted = False
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._bar: Any = None
        self._alarms: set[str] = set()
        self._handlers: dict[int, Any] = {}
        self.start("", 0)

    def __enter__(self) -> Progress:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {s: signal.signal(s, self._interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._close_bar()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Begins a phase of `total` steps, `done` of which were done before (by a run that is resumed)."""
        self._close_bar()
        self._label, self._total, self._first = label, total, done
        self._began, self._printed = time.monotonic(), float("-inf")
        if self._terminal and total:
            self._open_bar(done)

    def advance(self, done: int, figures: Mapping[str, float] | None = None, alarms: Sequence[str] = ()) -> None:
        """Shows that `done` steps of the phase are done. An alarm is said when it starts, not at every step."""
        for alarm in alarms:
            if alarm not in self._alarms:
                self.say(f"! step {done}: {alarm}")
        self._alarms = set(alarms)
        shown = describe(figures or {})
        if self._bar is not None:
            self._bar.update(self._task, completed=done, figures=shown)
        elif time.monotonic() - self._printed >= _PLAIN_SECONDS or done >= self._total:
            self._printed = time.monotonic()
            left = self._left(done)
            parts = (f"{self._label} {done}/{self._total}", shown, "" if left is None else f"left {clock(left)}")
            self.say("  ".join(part for part in parts if part))

    def say(self, text: str) -> None:
        """One lasting line."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def _left(self, done: int) -> float | None:
        """Seconds left, at the pace of this process so far; None before a hundredth of the phase is done, since the
        first step bears what the phase prepares."""
        if done < self._total and 100 * (done - self._first) < self._total:
            return None
        return (time.monotonic() - self._began) / max(1, done - self._first) * max(0, self._total - done)

    def _interrupt(self, number: int, frame: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        # Not through the stream: a handler may run in the middle of a write to it, and buffers are not reentrant.
        with contextlib.suppress(OSError, ValueError):
            os.write(self._stream.fileno(), b"\nstopping as soon as nothing is lost by it; once more to stop at once\n")

    def _open_bar(self, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        # On a narrow terminal the figures are cut, which come last, and nothing else.
        whole, rest = (lambda: Column(no_wrap=True)), Column(no_wrap=True, overflow="ellipsis", ratio=1)
        columns = (
            TextColumn("{task.description}", table_column=whole()),
            BarColumn(12, table_column=whole()),
            MofNCompleteColumn(table_column=whole()),
            TimeRemainingColumn(table_column=whole()),
            TextColumn("{task.fields[figures]}", markup=False, table_column=rest),
        )
        # Standard output is for results: rich would lead it through the console of the bar.
        self._bar = Bar(
            *columns,
            console=Console(file=self._stream),
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
            expand=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(self._label, total=self._total, completed=done, figures="")

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def describe(figures: Mapping[str, float]) -> str:
    """ "reward 0.52  ASR 12.0 %": rates, which are fractions in [0, 1], as percentages."""
    return "  ".join(f"{_name(name)} {_figure(name, value)}" for name, value in figures.items() if value is not None)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _name(name: str) -> str:
    return re.sub(r"\b(asr|orr|ftr|kl)\b", lambda match: match[0].upper(), name.replace("_", " "))


def _figure(name: str, value: float) -> str:
    if not _RATES.isdisjoint(re.split("[_/ ]", name.lower())):
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
