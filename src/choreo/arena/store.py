"""An arena on disk: one SQLite file in its folder. What was acknowledged is on the disk before it is acknowledged.

settings   what the arena is about
items      what is shown
raters     who may rate, each with the SHA-256 of a secret key
audit      the log of everything that happened; SQLite itself refuses to change or remove a line of it
ratings    a view of the log: what each rater said and has not undone

The file must lie on a local disk, because SQLite's write-ahead log does not work over a network.
"""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from choreo.arena.items import CHOICES, Item, Mode, Rating, fields_of, item_of
from choreo.errors import BadInput
from choreo.files import durable
from choreo.server.keys import Key, hashed, new_key

FILE = "arena.sqlite"
LAYOUT = 1  # of the file (PRAGMA user_version)
PATIENCE = 60.0  # seconds to wait for another process's commit
NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)  # as `Key.name` allows

TABLES = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE items (id INTEGER PRIMARY KEY, item TEXT NOT NULL);
CREATE TABLE raters (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE);
CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, rater TEXT NOT NULL,
    action TEXT NOT NULL CHECK (action IN ('key', 'rate', 'undo')),
    item INTEGER REFERENCES items, choice TEXT, degenerate INTEGER, shown_left TEXT,
    undone INTEGER UNIQUE REFERENCES audit
);
CREATE INDEX audit_of_rater ON audit (rater, item);
CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_stays BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE VIEW ratings AS
    SELECT id, at, rater, item, choice, degenerate, shown_left FROM audit
    WHERE action = 'rate' AND NOT EXISTS (SELECT 1 FROM audit later WHERE later.undone = audit.id);
"""


class Conflict(Exception):
    """What a rater asks for does not fit what stands already. The message is one line for the rater."""


def create(folder: Path, about: Mapping[str, Any], items: Sequence[Item]) -> None:
    """A new arena in `folder`, whole or not at all. Raises BadInput where one is there already."""
    if (folder / FILE).exists():
        raise BadInput(f"{folder}: holds an arena already; name another folder")
    durable.make_folder(folder)
    half = folder / f".{FILE}{durable.TEMPORARY}"
    half.unlink(missing_ok=True)
    file = sqlite3.connect(half)
    try:
        file.executescript(f"PRAGMA synchronous = FULL; {TABLES} PRAGMA user_version = {LAYOUT};")
        with file:
            file.executemany("INSERT INTO settings VALUES (?, ?)", [(k, json.dumps(v)) for k, v in about.items()])
            lines = [(item.id, json.dumps(fields_of(item))) for item in items]
            file.executemany("INSERT INTO items VALUES (?, ?)", lines)
    finally:
        file.close()
    try:
        os.link(half, folder / FILE)  # unlike a rename it replaces nothing that came meanwhile
    except FileExistsError:
        raise BadInput(f"{folder}: holds an arena already; name another folder") from None
    finally:
        half.unlink()
    durable.sync_folder(folder)


class Arena:
    """An arena that exists. Threads may share one object, and processes the file. Raises BadInput where `folder` holds
    none."""

    def __init__(self, folder: Path):
        self.folder, self._lock = folder, threading.Lock()
        if not (folder / FILE).is_file():
            raise BadInput(f"{folder}: holds no arena (choreo arena new makes one)")
        try:
            # Transactions are begun and ended by `_change` alone.
            self._file = sqlite3.connect(folder / FILE, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            layout = self._file.execute("PRAGMA user_version").fetchone()[0]
            if layout != LAYOUT:
                raise BadInput(f"{folder / FILE}: has layout {layout}; this version of choreo knows layout {LAYOUT}")
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = FULL")  # a commit is on the disk, a power cut loses none
            self.about: dict[str, Any] = {
                name: json.loads(value) for name, value in self._file.execute("SELECT name, value FROM settings")
            }
            lines = self._file.execute("SELECT item FROM items ORDER BY id").fetchall()
            self.items = {item.id: item for (line,) in lines for item in [item_of(json.loads(line))]}
        except sqlite3.Error as error:
            raise BadInput(f"{folder / FILE}: cannot be used as an arena: {error}") from None

    @property
    def mode(self) -> Mode:
        mode: Mode = self.about["mode"]
        return mode

    def rater_keys(self) -> list[Key]:
        """The raters' keys, as they are now: another process may have added some."""
        with self._lock:
            return [Key(name=name, sha256=sha) for name, sha in self._file.execute("SELECT name, sha256 FROM raters")]

    def add_rater(self, name: str, renew: bool = False) -> str:
        """A new secret key for the rater `name`, who is new unless `renew`. It is shown this once: its hash is kept."""
        if not NAME.fullmatch(name):
            raise BadInput(f"rater {name!r}: a name has 1 to 64 letters, digits, and . _ - alone")
        secret = new_key()
        with self._change() as file:
            known = file.execute("SELECT 1 FROM raters WHERE name = ?", (name,)).fetchone()
            if known and not renew:
                raise BadInput(f"rater {name!r}: has a key already; --renew gives another one and ends the old one")
            if renew and not known:
                raise BadInput(f"rater {name!r}: is not there yet, so there is no key to renew")
            file.execute("INSERT OR REPLACE INTO raters VALUES (?, ?)", (name, hashed(secret)))
            file.execute("INSERT INTO audit (at, rater, action) VALUES (?, ?, 'key')", (_now(), name))
        return secret

    def order(self, rater: str) -> list[int]:
        """The ids of all items in the order in which `rater` sees them."""
        ids = list(self.items)
        random.Random(f"order {self.about['seed']} {rater}").shuffle(ids)
        return ids

    def left(self, rater: str, item: int) -> str:
        """Which answer of a pair `rater` sees on the left, "a" or "b"; "" where an item has one answer."""
        if self.mode == "labels":
            return ""
        return random.Random(f"side {self.about['seed']} {rater} {item}").choice(("a", "b"))

    def rate(self, rater: str, item: int, choice: str, degenerate: bool | None) -> None:
        """Writes down what `rater` says of an item. To say the same once more changes nothing, so that a client that
        heard no answer may ask again. Raises Conflict where something else stands. choice: of CHOICES."""
        assert choice in CHOICES[self.mode] and item in self.items
        with self._change() as file:
            stands = file.execute(
                "SELECT choice, degenerate FROM ratings WHERE rater = ? AND item = ?", (rater, item)
            ).fetchone()
            if stands == (choice, degenerate):
                return
            if stands:
                raise Conflict("this was rated already, and otherwise; undo that first")
            file.execute(
                "INSERT INTO audit (at, rater, action, item, choice, degenerate, shown_left) "
                "VALUES (?, ?, 'rate', ?, ?, ?, ?)",
                (_now(), rater, item, choice, degenerate, self.left(rater, item)),
            )

    def undo(self, rater: str, item: int) -> None:
        """Takes back the last rating of `rater`, which must be of this item. Where nothing stands for the item, nothing
        happens, so that a client may ask again. Raises Conflict where another rating is the last."""
        with self._change() as file:
            standing = file.execute(
                "SELECT id, item FROM ratings WHERE rater = ? ORDER BY id DESC", (rater,)
            ).fetchall()
            if all(rated != item for _, rated in standing):
                return
            if standing[0][1] != item:
                raise Conflict("only the last rating can be undone")
            file.execute(
                "INSERT INTO audit (at, rater, action, item, undone) VALUES (?, ?, 'undo', ?, ?)",
                (_now(), rater, item, standing[0][0]),
            )

    def ratings(self, rater: str | None = None) -> list[Rating]:
        """What stands, of one rater or of all, in the order in which it was said."""
        columns = "id, at, rater, item, choice, degenerate, shown_left"
        whose, who = ("WHERE rater = ?", [rater]) if rater is not None else ("", [])
        with self._lock:
            lines = self._file.execute(f"SELECT {columns} FROM ratings {whose} ORDER BY id", who).fetchall()
        return [
            Rating(number, at, who, item, choice, None if degenerate is None else bool(degenerate), left)
            for number, at, who, item, choice, degenerate, left in lines
        ]

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which no other process's comes between. It is committed, and on the disk, at its end."""
        with self._lock:
            self._file.execute("BEGIN IMMEDIATE")
            try:
                yield self._file
                self._file.execute("COMMIT")
            except BaseException:
                if self._file.in_transaction:
                    self._file.execute("ROLLBACK")
                raise


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
