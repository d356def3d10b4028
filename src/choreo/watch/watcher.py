"""Looks at run folders again and again, in a thread of its own: their rows for the table, their games for the index."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from choreo.errors import BadInput
from choreo.files.durable import finite, read_lines
from choreo.runs.folder import is_finished
from choreo.watch.figures import WatchedRun
from choreo.watch.folders import INNER, runs_in, stamp, watched
from choreo.watch.games import indexed
from choreo.watch.index import TRAINING, GameIndex

EVERY = 1.0  # seconds between two looks
WALK = 5.0  # seconds between two searches for new runs
SLICE = 0.5  # seconds of indexing between two looks


class Watcher:
    """What is known of the runs below `folder`. Use it as a context manager: the thread ends with it.

    runs: by number. told, tag: the table as JSON, and what changes with it.
    """

    def __init__(self, folder: Path):
        self.folder, self.index = watched(folder), GameIndex()
        self.runs: dict[int, WatchedRun] = {}
        self.told, self.tag = b"{}", ""
        self._numbers: dict[Path, int] = {}
        self._stamps: dict[Path, str] = {}  # of the files of games that are in the index, or cannot be
        self._damaged: dict[Path, str] = {}
        self._waiting = 0  # files that are not in the index yet
        self._unread: Counter[int] | None = None  # of them, by run; None before anybody has counted
        self._problem_of_index = ""
        self._walked = float("-inf")
        self._last: dict[int, tuple[int, dict[str, Any] | None]] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watcher", daemon=True)

    def __enter__(self) -> Watcher:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self.index.close()

    def _work(self) -> None:
        while not self._ending.is_set():
            try:
                more = self.take_up(SLICE)
            except sqlite3.Error as error:  # as when the disk is full
                more, self._problem_of_index = False, f"games cannot be read in: {error}"
            self.look()
            if not more:
                self._ending.wait(EVERY)

    def look(self) -> None:
        """Reads what has changed in the runs, but for their games."""
        if time.monotonic() - self._walked >= WALK:
            self._find()
            self._walked = time.monotonic()
        rows = []
        for number, run in list(self.runs.items()):
            run.look(self._played(number))
            rows.append({**run.row, "last": self._last_games(number), "problem": self._problem(run)})
        by_name = {row["name"]: row for row in rows}
        for row in rows:  # a run whose warm start is going on says so
            inner = [one for name in INNER if (one := by_name.get(f"{row['name']}/{name}"))]
            busy = next((one for one in inner if one["state"] == "running"), None)
            if busy and row["state"] == "running":
                row["doing"] = f"{busy['name'].rpartition('/')[2]}: {busy['doing']}"
                row["updated"] = max(row["updated"], busy["updated"])
        said = {
            "folder": str(self.folder),
            "runs": rows,
            "games": self.index.games,
            "waiting": self._waiting,
            "version": self.index.version,
            "problem": self._problem_of_index,
        }
        self.told = json.dumps(finite(said)).encode()
        self.tag = f'"{sha256(self.told).hexdigest()[:20]}"'

    def take_up(self, seconds: float) -> bool:
        """Brings files of games into the index for so long, the newest first. Returns whether some are left."""
        deadline = time.monotonic() + seconds
        todo = self._todo()
        self._waiting, self._unread = len(todo), Counter(run.number for run, *_ in todo)
        for run, file, now, source, step in todo:
            if time.monotonic() > deadline or self._ending.is_set():
                return True
            self._stamps[file] = now
            self._waiting -= 1
            self._unread[run.number] -= 1
            self._damaged.pop(file, None)
            try:
                games = [indexed(record) for record in read_lines(file)]
            except BadInput as error:
                self._damaged[file] = str(error)
                continue
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                self._damaged[file] = f"{file}: holds what is no record of a game ({type(error).__name__})"
                continue
            self.index.put(run.number, file, source, step, games)
        return False

    def _find(self) -> None:
        paths = runs_in(self.folder)
        for path in paths:
            name = str(path.relative_to(self.folder)) if path != self.folder else path.name
            if (number := self._numbers.setdefault(path, len(self._numbers) + 1)) not in self.runs:
                self.runs[number] = WatchedRun(number, path, name)
        gone = {number for number, run in self.runs.items() if run.path not in paths}
        self.runs = {self._numbers[path]: self.runs[self._numbers[path]] for path in paths}
        for file in [file for file in self._stamps if gone and not file.exists()]:
            self._lose(file)

    def _todo(self) -> list[tuple[WatchedRun, Path, str, str, int | None]]:
        """The files of games that are new or others than before, the newest first; those that are gone are dropped."""
        there: set[Path] = set()
        todo = []
        for run in list(self.runs.values()):
            for file, source, step in games_of_run(run.path):
                there.add(file)
                if (now := str(stamp(file))) != self._stamps.get(file):
                    todo.append((run, file, now, source, step))
        for file in self._stamps.keys() - there:
            self._lose(file)
        # A run that goes on first, then its last steps; what was measured of finished ones at the end.
        return sorted(todo, key=lambda one: (is_finished(one[0].path), one[4] is None, -(one[4] or 0), one[0].number))

    def _lose(self, file: Path) -> None:
        del self._stamps[file]
        self._damaged.pop(file, None)
        self.index.drop(file)

    def _played(self, number: int) -> int | None:
        """The games of a run; None where files of it are still to be read."""
        return None if self._unread is None or self._unread[number] else self.index.games_of(number)

    def _last_games(self, number: int) -> dict[str, Any] | None:
        version = self.index.version
        if self._last.get(number, (-1, None))[0] != version:
            self._last[number] = version, self.index.last_step(number)
        return self._last[number][1]

    def _problem(self, run: WatchedRun) -> str:
        damaged = (said for file, said in self._damaged.items() if run.path == _run_of(file))
        return run.problem or next(damaged, "")


def _run_of(file: Path) -> Path | None:
    """The run folder that a file of games is of."""
    return next((place.parent for place in file.parents if place.name in ("episodes", "heldout", "attempts")), None)


def games_of_run(path: Path) -> Iterator[tuple[Path, str, int | None]]:
    """The files of games of the run at `path`: each with its source (`TRAINING`, or a system) and its step."""
    for file in path.glob("episodes/step-*.jsonl.gz"):
        if step := re.fullmatch(r"step-(\d+)\.jsonl\.gz", file.name):
            yield file, TRAINING, int(step[1])
    for file in path.glob("heldout/*.jsonl.gz"):
        if not file.name.startswith("."):
            yield file, unquote(file.name.removesuffix(".jsonl.gz")), None
    rounds = {int(found[1]): one for one in path.glob("heldout/*") if (found := re.fullmatch(r"round-(\d+)", one.name))}
    for number, folder in sorted(rounds.items()):
        for file in folder.glob("*.jsonl.gz"):
            at_the_end = number == max(rounds) and (path / "heldout" / file.name).is_file()  # the same games
            if not (at_the_end or file.name.startswith(".")):
                yield file, f"{unquote(file.name.removesuffix('.jsonl.gz'))} after round {number}", None
    for file in path.glob("attempts/*.jsonl.gz"):  # of an attack: SYSTEM, ATTACK.TRY-CHUNK
        if not file.name.startswith("."):
            yield file, unquote(file.name.removesuffix(".jsonl.gz").rpartition(".")[0]), None
