"""A run shown to people: a bar with the figures that matter on a terminal, plain lines elsewhere.

It writes to the error stream, so that standard output carries results alone.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from choreo.runs.callbacks import Callback

_PLAIN_SECONDS = 5.0  # between plain lines, so that a log of hours stays readable
_RATES = {"asr", "orr", "ftr", "accuracy", "rate", "share", "degenerate", "gradient"}


class ProgressBar(Callback):
    """Shows phases, figures and messages on `stream`, by default the error stream."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._bar: Any = None
        self._begun: dict[int, tuple[float, int]] = {}  # by total: when its work began, and how much was done then
        self._reached: dict[int, int] = {}  # by total: how much is done
        self.on_phase("", 0, 0)

    def on_phase(self, label: str, total: int, done: int) -> None:
        self._close_bar()
        # A phase that begins where one of the same total ended goes on with its work, as a round of MACPO does.
        if not done or self._reached.get(total) != done:
            self._begun[total] = (time.monotonic(), done)
        self._label, self._total, self._printed = label, total, float("-inf")
        if self._terminal and total:
            self._open_bar(done)

    def on_progress(self, done: int, figures: Mapping[str, float]) -> None:
        self._reached[self._total] = done
        shown, left = describe(figures), self._left(done)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, figures=shown, left="" if left is None else clock(left))
        elif time.monotonic() - self._printed >= _PLAIN_SECONDS or done >= self._total:
            self._printed = time.monotonic()
            parts = (f"{self._label} {done}/{self._total}", shown, "" if left is None else f"left {clock(left)}")
            self.on_message("  ".join(part for part in parts if part))

    def on_message(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def on_end(self) -> None:
        self._close_bar()

    def _left(self, done: int) -> float | None:
        """Seconds left, at the pace of this process so far. None before a hundredth of the work is done: the first
        step also bears what its phase prepares."""
        began, first = self._begun[self._total]
        if done < self._total and 100 * (done - first) < self._total:
            return None
        return (time.monotonic() - began) / max(1, done - first) * max(0, self._total - done)

    def _open_bar(self, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        # On a narrow terminal the figures are cut, which come last, and nothing else.
        whole, rest = (lambda: Column(no_wrap=True)), Column(no_wrap=True, overflow="ellipsis", ratio=1)
        columns = (
            TextColumn("{task.description}", table_column=whole()),
            BarColumn(12, table_column=whole()),
            MofNCompleteColumn(table_column=whole()),
            TextColumn("{task.fields[left]}", markup=False, table_column=whole()),
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
        self._task = self._bar.add_task(self._label, total=self._total, completed=done, figures="", left="")

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
