"""A side's part in taking turns: wait to be told, do one step, say how long it took.

The first WARM_UP steps go unreported but for "ready" at their end. The figures of a turn travel on the
standard output that the process started with; whatever libraries print goes to the error stream.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from work import WARM_UP


class Turns:
    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._steps = 0
        self._began, self._spent = time.perf_counter(), time.process_time()
        self._inside: dict[str, float] = {}

    def end(self, **figures: Any) -> None:
        """Call at the end of every step; returns when the next may begin, or ends the process when none may."""
        seconds, processor = time.perf_counter() - self._began, time.process_time() - self._spent
        self._steps += 1
        if self._steps >= WARM_UP:
            report = {"seconds": seconds, "cpu_seconds": processor, **figures, **self._inside, "peak_mib": peak_mib()}
            print(json.dumps(report), file=self._out, flush=True)
            if not sys.stdin.readline():
                raise SystemExit
        self._inside.clear()
        self._began, self._spent = time.perf_counter(), time.process_time()

    def time(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its seconds added up in the turn's figure `name`."""

        def timed(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = function(*args, **options)
            self._inside[name] = self._inside.get(name, 0.0) + time.perf_counter() - began
            return result

        return timed


def peak_mib() -> float:
    """Peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
