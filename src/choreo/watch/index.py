"""Finds games among many: an index of SQLite in a temporary folder, with the words of every game.

One thread writes it; others read. A list of games is made once for each question and kept as numbers, so that any part
of it, however far down, is looked up by number.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
import threading
from array import array
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from choreo.watch.games import IndexedGame

TRAINING = ""  # the source of games that training sampled; other games are of a system on held-out prompts
KEPT = 8  # lists that are kept
_SCHEMA = """
CREATE TABLE files (id INTEGER PRIMARY KEY AUTOINCREMENT, run INTEGER, path TEXT UNIQUE);
CREATE TABLE games (
    id INTEGER PRIMARY KEY AUTOINCREMENT, file INTEGER, place INTEGER, run INTEGER, source TEXT, step INTEGER,
    kind TEXT, suite TEXT, verdict TEXT, outcome TEXT, agents INTEGER, reward REAL, prompt TEXT
);
CREATE INDEX by_file ON games (file);
CREATE INDEX by_step ON games (step, run, place, id);
CREATE VIRTUAL TABLE words USING fts5 (text, content='', tokenize='unicode61 remove_diacritics 2');
"""
ORDERS = {  # held-out games have no step, and come after those of training
    "newest": "step IS NULL, step DESC, run, place",
    "oldest": "step IS NULL, step, run, place",
    "lowest": "reward IS NULL, reward, step DESC, run, place",
    "highest": "reward IS NULL, reward DESC, step DESC, run, place",
}
CHOICES = ("source", "kind", "suite", "verdict", "outcome")


@dataclass(frozen=True)
class GameSearch:
    """Which games, and in which order. None asks for all. runs: their numbers; none asks for all runs. words: all of
    them must be in a game's text, each as the beginning of a word; what stands in quotes, as it stands."""

    runs: tuple[int, ...] = ()
    source: str | None = None
    kind: str | None = None
    suite: str | None = None
    verdict: str | None = None
    outcome: str | None = None
    agent: str | None = None
    first_step: int | None = None
    last_step: int | None = None
    words: str = ""
    order: str = "newest"


class GameIndex:
    """version: rises with every change. games: how many there are."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="choreo-watch-", ignore_cleanup_errors=True)
        file = Path(self._folder.name) / "games.sqlite"
        self._writing, self._reading = (sqlite3.connect(file, check_same_thread=False) for _ in range(2))
        # It is made anew at every start, so nothing has to outlive a power cut.
        self._writing.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;" + _SCHEMA)
        self._reading.row_factory = sqlite3.Row
        self._alone = threading.Lock()  # of readers
        self._lists: OrderedDict[tuple[GameSearch, int], array[int]] = OrderedDict()
        self._agents: dict[str, int] = {}
        self.version = self.games = 0

    def close(self) -> None:
        with self._alone:
            self._writing.close()
            self._reading.close()
        self._folder.cleanup()

    # ---- writing, by one thread ---------------------------------------------------------------------

    def put(self, run: int, file: Path, source: str, step: int | None, games: Sequence[IndexedGame]) -> None:
        """Takes up the games of a file, in place of what it had before."""
        with self._writing as sql:
            self._forget(file)
            made = sql.execute("INSERT INTO files (run, path) VALUES (?, ?)", (run, str(file))).lastrowid
            for place, game in enumerate(games):
                row = (made, place, run, source, step, game.kind, game.suite, game.verdict, game.outcome)
                agents = sum(self._bit(name) for name in game.agents)
                number = sql.execute(
                    "INSERT INTO games (file, place, run, source, step, kind, suite, verdict, outcome, agents, reward, "
                    "prompt) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*row, agents, game.reward, game.prompt),
                ).lastrowid
                sql.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (number, game.words.replace("\0", " ")))
            self.games += len(games)
        self.version += 1

    def drop(self, file: Path) -> None:
        """Forgets the games of a file that is gone."""
        with self._writing:
            self._forget(file)
        self.version += 1

    def _forget(self, file: Path) -> None:
        # The words stay: what has no text of its own cannot be taken out again. No game is found by them any more.
        sql = self._writing
        gone = sql.execute("DELETE FROM games WHERE file = (SELECT id FROM files WHERE path = ?)", (str(file),))
        self.games -= gone.rowcount
        sql.execute("DELETE FROM files WHERE path = ?", (str(file),))

    def _bit(self, agent: str) -> int:
        return 1 << min(self._agents.setdefault(agent, len(self._agents)), 62)

    # ---- reading, by any thread ---------------------------------------------------------------------

    def page(self, question: GameSearch, at: int, most: int, version: int | None = None) -> dict[str, Any]:
        """{version, total, at, games}: `most` games from place `at` on. version: of the list that is asked of; where it
        is not kept any more, the list is made anew, and says another version."""
        with self._alone:
            kept, numbers = self._list(question, version)
            asked = numbers[at : at + most].tolist()
            rows = self._reading.execute(
                "SELECT id, run, source, step, place, kind, suite, verdict, outcome, reward, prompt FROM games "
                f"WHERE id IN ({','.join('?' * len(asked))})",
                asked,
            ).fetchall()
        found = {row["id"]: dict(row) for row in rows}
        games = [found.get(number, {"id": number, "gone": True}) for number in asked]
        return {"version": kept, "total": len(numbers), "at": at, "games": games}

    def _list(self, question: GameSearch, version: int | None) -> tuple[int, array[int]]:
        now = self.version
        for known in (now if version is None else version, now):
            if (found := self._lists.get((question, known))) is not None:
                self._lists.move_to_end((question, known))
                return known, found
        where, values = self._conditions(question)
        rows = self._reading.execute(
            f"SELECT id FROM games {'WHERE ' + ' AND '.join(where) if where else ''} ORDER BY {ORDERS[question.order]}",
            values,
        )
        numbers = array("q", (row[0] for row in rows))
        self._lists[question, now] = numbers
        while len(self._lists) > KEPT:
            self._lists.popitem(last=False)
        return now, numbers

    def _conditions(self, question: GameSearch) -> tuple[list[str], list[Any]]:
        where: list[str] = []
        values: list[Any] = []

        def must(condition: str, *given: Any) -> None:
            where.append(condition)
            values.extend(given)

        if question.runs:
            must(f"run IN ({','.join('?' * len(question.runs))})", *question.runs)
        for name in CHOICES:
            if (value := getattr(question, name)) is not None:
                must(f"{name} = ?", value)
        if question.agent is not None:
            number = self._agents.get(question.agent)
            must("agents & ? != 0", 0 if number is None else 1 << min(number, 62))
        if question.first_step is not None:
            must("step >= ?", question.first_step)
        if question.last_step is not None:
            must("step <= ?", question.last_step)
        if matched := match_of(question.words):
            must("id IN (SELECT rowid FROM words WHERE words MATCH ?)", matched)
        return where, values

    def game(self, number: int) -> dict[str, Any] | None:
        """Where a game is: {run, path, place, source, step}; None where there is none."""
        with self._alone:
            row = self._reading.execute(
                "SELECT games.run, path, place, source, step FROM games JOIN files ON file = files.id "
                "WHERE games.id = ?",
                (number,),
            ).fetchone()
        return dict(row) if row else None

    def choices(self, runs: Sequence[int]) -> dict[str, list[Any]]:
        """What the games of these runs can be chosen by: the values of every choice with their numbers, by name."""
        where = f"WHERE run IN ({','.join('?' * len(runs))})" if runs else ""
        grouped = (
            f"SELECT {', '.join(CHOICES)}, agents, count(*) FROM games {where} GROUP BY {', '.join(CHOICES)}, agents"
        )
        with self._alone:
            rows = self._reading.execute(grouped, list(runs)).fetchall()
        counts: dict[str, Counter[str]] = {name: Counter() for name in (*CHOICES, "agent")}
        for *values, mask, count in rows:
            for name, value in zip(CHOICES, values, strict=True):
                counts[name][value] += count
            for agent, number in list(self._agents.items()):
                counts["agent"][agent] += count if mask >> number & 1 else 0
        return {name: [[value, n] for value, n in sorted(one.items()) if n] for name, one in counts.items()}

    def games_of(self, run: int) -> int:
        """How many games of the run there are."""
        counted = "SELECT count(*) FROM games WHERE file IN (SELECT id FROM files WHERE run = ?)"
        with self._alone:
            return int(self._reading.execute(counted, (run,)).fetchone()[0])

    def last_step(self, run: int) -> dict[str, Any] | None:
        """How the games of the run's last step of training ended: {step, games, and how many are of each outcome and
        verdict}; None without games."""
        with self._alone:
            rows = self._reading.execute(
                "SELECT step, outcome, verdict, count(*) FROM games WHERE run = ? AND source = ? AND step = (SELECT "
                "max(step) FROM games WHERE run = ? AND source = ?) GROUP BY 1, 2, 3",
                (run, TRAINING, run, TRAINING),
            ).fetchall()
        if not rows:
            return None
        found = {"step": rows[0][0], "games": 0}
        for _, outcome, verdict, count in rows:
            found["games"] += count
            for name in (outcome, verdict):
                found[name] = found.get(name, 0) + count
        return found


def match_of(words: str) -> str:
    """What FTS5 is asked for a person's words: nothing in them is an operator."""
    quoted = re.compile(r'"([^"]*)"?|(\S+)')
    terms = []
    for phrase, word in quoted.findall(words.replace("\0", " ")):  # where a text of SQLite ends
        if not re.search(r"\w", phrase or word):  # FTS5 finds no word in it, and would find no game
            continue
        text = (phrase or word).replace('"', " ")
        terms.append(f'"{text}"' if phrase else f'"{text}"*')
    return " ".join(terms)
