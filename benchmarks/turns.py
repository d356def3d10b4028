"""A side's part in taking turns: wait to be told, do one step, say how long it took.

The first WARM_UP steps go unreported but for "ready" at their end. The figures of a turn travel on the
standard output that the process started with; whatever libraries print goes to the error stream. Where the process
uses a card, a time ends when the card has done what it was given.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
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
        wait_for_card()
        seconds, processor = time.perf_counter() - self._began, time.process_time() - self._spent
        self._steps += 1
        if self._steps >= WARM_UP:
            report = {"seconds": seconds, "cpu_seconds": processor, **figures, **self._inside, **memory()}
            print(json.dumps(report), file=self._out, flush=True)
            if not sys.stdin.readline():
                raise SystemExit
        self._inside.clear()
        self._began, self._spent = time.perf_counter(), time.process_time()

    def time(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its seconds added up in the turn's figure `name`."""

        def timed(*args: Any, **options: Any) -> Any:
            wait_for_card()
            began = time.perf_counter()
            result = function(*args, **options)
            wait_for_card()
            self._inside[name] = self._inside.get(name, 0.0) + time.perf_counter() - began
            return result

        return timed


def wait_for_card() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def memory() -> dict[str, float]:
    """MiB. peak_mib: the most that this process had so far: of the card what its tensors took, without one resident.
    device_mib: what is taken of the card now, by whatever uses it."""
    if torch.cuda.is_initialized():
        free, whole = torch.cuda.mem_get_info()
        return {"peak_mib": torch.cuda.max_memory_allocated() / 2**20, "device_mib": (whole - free) / 2**20}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_mib": peak / (2**20 if sys.platform == "darwin" else 2**10)}
