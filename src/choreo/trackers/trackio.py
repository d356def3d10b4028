"""Trackio: a local database, which `trackio show` reads. TRACKIO_DIR says where it is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

from choreo.trackers.base import Tracked

TRACKERS = {"trackio": "choreo.trackers.trackio:Trackio"}


class Trackio:
    LIBRARY = "trackio"

    def __init__(self, tracked: Tracked):
        import trackio

        self._table: Any = trackio.Table
        with redirect_stdout(sys.stderr):  # standard output is for results
            self._run: Any = trackio.init(
                project=tracked.project,
                name=f"{tracked.name}-{tracked.id}",
                resume="allow",
                config=dict(tracked.recipe),
                embed=False,
            )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        if rows:
            import pandas

            self._run.log({name: self._table(dataframe=pandas.DataFrame([*map(dict, rows)]))}, step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()
