"""A run told to programs that collect logs: with CHOREO_LOG_FORMAT=json, every line of the error stream is an object.

Each has time (UTC), level (info, warning, error), run (its folder), step (the last training step that is done; null
before there is one) and event. Without the variable `choreo.runs.bar` tells a run to people.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from choreo.errors import BadInput
from choreo.files.durable import finite
from choreo.runs.callbacks import Callback

VARIABLE = "CHOREO_LOG_FORMAT"
_SECONDS = 5.0  # between two objects on progress, so that a log of hours stays small


def wanted() -> bool:
    """Whether the user's environment asks for JSON lines. Raises BadInput where it asks for something else."""
    if (value := os.environ.get(VARIABLE, "")) not in ("", "text", "json"):
        raise BadInput(f"{VARIABLE}: expected json or text, got {value!r:.40}")
    return value == "json"


def line(level: str, event: str, run: str | None = None, step: int | None = None, **more: Any) -> str:
    """One object, as a line without its end. Numbers that are not finite become null."""
    said = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "run": run, "step": step}
    return json.dumps(finite({**said, "event": event, **more}), allow_nan=False)


class JsonLines(Callback):
    """Tells of a run in `folder` on the error stream."""

    def __init__(self, folder: Path):
        self._run = str(folder)
        self._step: int | None = None
        self._phase, self._total, self._told = "", 0, float("-inf")

    def on_phase(self, label: str, total: int, done: int) -> None:
        self._phase, self._total, self._told = label, total, float("-inf")
        if label == "training" and done:
            self._step = done
        self._say("info", "phase", phase=label, done=done, total=total)

    def on_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._step = step

    def on_progress(self, done: int, figures: Mapping[str, float]) -> None:
        if time.monotonic() - self._told >= _SECONDS or done >= self._total:
            self._told = time.monotonic()
            self._say("info", "progress", phase=self._phase, done=done, total=self._total, figures=dict(figures))

    def on_message(self, text: str) -> None:
        self._say("warning" if text.startswith("!") else "info", "message", message=text.removeprefix("! "))

    def on_summary(self, summary: Mapping[str, Any]) -> None:
        """The final table: an object for each system, with its measures."""
        for name, measures in summary.get("systems", {}).items():
            self._say("info", "system", system=name, measures=measures)

    def _say(self, level: str, event: str, **more: Any) -> None:
        print(line(level, event, self._run, self._step, **more), file=sys.stderr, flush=True)
