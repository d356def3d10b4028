"""Who may ask, for what, and how often. Keys are kept as SHA-256 hashes and compared in constant time.

A hash without salt or stretching is right for keys that are drawn at random, 256 bits each, as `new_key` draws them.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from choreo.errors import BadInput
from choreo.files import toml


class Key(BaseModel):
    """One caller. By default a key allows requests, and nothing more.

    trace: may see drafts and reviews. modes: may choose another mode than the server's, "off" too.
    unchecked: may have the draft streamed before it is reviewed. metrics: may read /metrics.
    per_minute: answers, `n` of each request. in_flight: answers at once, reviews in the shadow too. None is no limit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    trace: bool = False
    modes: bool = False
    unchecked: bool = False
    metrics: bool = False
    per_minute: Annotated[int, Field(ge=1)] | None = None
    in_flight: Annotated[int, Field(ge=1)] | None = None


def new_key() -> str:
    return "sk-choreo-" + secrets.token_urlsafe(32)


def hashed(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def own_key(secret: str) -> Key:
    """The key of a user who starts the server for himself: it allows everything."""
    return Key(name="local", sha256=hashed(secret), trace=True, modes=True, unchecked=True, metrics=True)


def entry(name: str, secret: str) -> str:
    """The lines of a keys file for a new key."""
    return f'[[key]]\nname = "{name}"\nsha256 = "{hashed(secret)}"\n'


def load(file: Path) -> list[Key]:
    """The keys of a TOML file. Raises BadInput that names file, line and field."""
    data, lines = toml.read(file)
    tables = data.get("key")
    if data.keys() != {"key"} or not isinstance(tables, list):
        raise BadInput(f"{file}: must hold [[key]] tables and nothing else (choreo key NAME writes one)")
    try:
        keys = [Key.model_validate(table) for table in tables]
    except ValidationError as error:
        first = error.errors()[0]
        where = tuple(map(str, first["loc"]))
        raise BadInput(f"{file}:{toml.line_of(lines, ('key', *where))}: {'.'.join(where)}: {first['msg']}") from None
    for name, values in (("name", [key.name for key in keys]), ("sha256", [key.sha256 for key in keys])):
        if len(set(values)) < len(values):
            raise BadInput(f"{file}: two keys have the same {name}")
    return keys


def find_key(keys: Sequence[Key], authorization: str | None) -> Key | None:
    """The key that an Authorization header holds, or None. Every key is compared, so that the time tells nothing."""
    scheme, _, secret = (authorization or "").partition(" ")
    given = hashed(secret.strip()) if scheme.lower() == "bearer" else ""
    found = [key for key in keys if hmac.compare_digest(key.sha256, given)]
    return found[0] if found else None


@dataclass
class Limiter:
    """A token bucket per key: `per_minute` answers at once, refilled evenly."""

    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}  # name → (left, when)

    def wait(self, key: Key) -> float:
        """0 where a request may go on, and takes one from the bucket; else the seconds until one may."""
        if key.per_minute is None:
            return 0.0
        now = self.clock()
        left, when = self._buckets.get(key.name, (float(key.per_minute), now))
        left = min(float(key.per_minute), left + (now - when) * key.per_minute / 60)
        if left < 1:
            self._buckets[key.name] = (left, now)
            return (1 - left) * 60 / key.per_minute
        self._buckets[key.name] = (left - 1, now)
        return 0.0

    def owe(self, key: Key, more: int) -> None:
        """Takes `more` from the bucket, even below 0. How many answers a request asks for is known only when it has
        been read, so the next request waits for them."""
        if key.per_minute is not None and key.name in self._buckets:
            left, when = self._buckets[key.name]
            self._buckets[key.name] = (left - more, when)
