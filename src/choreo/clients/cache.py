"""Replies of models behind servers in one SQLite file, so that no question is sent, or paid for, twice.

Every reply is committed at once, so a kill loses no stored reply. Several processes may share a file: the first reply
to a question stays, and every process reads that one. The file must lie on a local disk, because SQLite's write-ahead
log does not work over a network.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from choreo.errors import BadInput
from choreo.files import utf8

LAYOUT = 2  # of the file (PRAGMA user_version). Layout 1 stored a reply without a text as one with an empty text
PATIENCE = 60.0  # seconds that a process waits for another one's commit
AT_ONCE = 500  # keys per query; SQLite allows at least 999


def key_of(body: Any) -> str:
    """SHA-256 of JSON data. The order of keys does not matter."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


class Cache:
    """Maps keys to replies (JSON data). path: None keeps the replies in memory, as long as the object lives.

    Raises BadInput, naming the file, where it cannot be opened or is not such a cache.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._lock = threading.Lock()
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            # Each statement commits by itself.
            self._file = sqlite3.connect(
                path or ":memory:", timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
            if (layout := self._file.execute("PRAGMA user_version").fetchone()[0]) not in (0, 1, LAYOUT):
                raise BadInput(f"{path}: is a cache of layout {layout}; this version of choreo knows layout {LAYOUT}")
            self._set_wal()
            # Safe against a kill of the process; a power cut may cost the last replies, never the file.
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
            if layout == 1:  # these questions are sent again
                self._file.execute("DELETE FROM replies WHERE json_extract(reply, '$.text') = ''")
            self._file.execute(f"PRAGMA user_version = {LAYOUT}")
        except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise BadInput(f"{path}: cannot be used as a cache of judgements: {error}") from None

    def _set_wal(self) -> None:
        """Write-ahead logging. SQLite does not wait for another process that sets it on the same new file."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._file.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def find(self, keys: Iterable[str]) -> dict[str, Any]:
        """The stored replies to `keys`, by key."""
        wanted = list(keys)
        found: dict[str, str] = {}
        with self._lock:
            for start in range(0, len(wanted), AT_ONCE):
                part = wanted[start : start + AT_ONCE]
                places = ", ".join("?" * len(part))
                found.update(self._file.execute(f"SELECT key, reply FROM replies WHERE key IN ({places})", part))
        return {key: utf8.loads(reply) for key, reply in found.items()}

    def keep(self, key: str, reply: Any) -> Any:
        """Stores `reply` unless there is one for this key, and returns the stored one."""
        with self._lock:
            self._file.execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", (key, json.dumps(reply)))
            kept = self._file.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return utf8.loads(kept[0])

    def __len__(self) -> int:
        with self._lock:
            return int(self._file.execute("SELECT count(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        self._file.close()
