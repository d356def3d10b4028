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
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from choreo.errors import BadInput
from choreo.files import toml


class Quota(NamedTuple):
    """What a key, or one end user behind it, may ask for. whose: for messages. The others are as of `Key`."""

    name: str
    whose: str
    per_minute: int | None
    in_flight: int | None


class Key(BaseModel):
    """One caller. By default a key allows requests, and nothing more.

    trace: may see drafts and reviews. modes: may choose another mode than the server's, "off" too.
    unchecked: may have the draft streamed before it is reviewed. metrics: may read /metrics.
    per_minute: answers, `n` of each request. in_flight: answers at once, reviews in the shadow too. None is no limit.
    end_user_per_minute, end_user_in_flight: answers of each end user that requests name; those that name none are one.
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
    end_user_per_minute: Annotated[int, Field(ge=1)] | None = None
    end_user_in_flight: Annotated[int, Field(ge=1)] | None = None

    @property
    def quota(self) -> Quota:
        return Quota(self.name, "key", self.per_minute, self.in_flight)

    def end_user(self, user: str) -> Quota:
        """The quota of one end user, under a name that does not say who that is."""
        return Quota(f"{self.name}/{hashed(user)}", "end user", self.end_user_per_minute, self.end_user_in_flight)


def new_key() -> str:
    """A key with 256 random bits."""
    return "sk-choreo-" + secrets.token_urlsafe(32)


def hashed(secret: str) -> str:
    """The SHA-256 of a key, as a keys file has it: 64 hex digits."""
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


class _Bucket(NamedTuple):
    left: float
    when: float
    per_minute: int

    def at(self, now: float) -> float:
        """What is left at a later time."""
        return min(float(self.per_minute), self.left + (now - self.when) * self.per_minute / 60)


@dataclass
class Limiter:
    """A token bucket per quota: `per_minute` answers at once, refilled evenly. Full buckets are forgotten."""

    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}  # by the quota's name
        self._swept = self.clock()

    def wait(self, quota: Quota) -> float:
        """0 where a request may go on, and takes one from the bucket; else the seconds until one may."""
        if quota.per_minute is None:
            return 0.0
        now = self.clock()
        if now > self._swept + 60:
            self._buckets = {name: kept for name, kept in self._buckets.items() if kept.at(now) < kept.per_minute}
            self._swept = now
        left = self._buckets.get(quota.name, _Bucket(quota.per_minute, now, quota.per_minute)).at(now)
        taken = left >= 1
        self._buckets[quota.name] = _Bucket(left - taken, now, quota.per_minute)
        return 0.0 if taken else (1 - left) * 60 / quota.per_minute

    def owe(self, quota: Quota, more: int) -> None:
        """Takes `more` from the bucket, even below 0; less than 0 gives back. How many answers a request asks for is
        known only when it has been read, so the next request waits for them."""
        if kept := self._buckets.get(quota.name):
            self._buckets[quota.name] = kept._replace(left=kept.left - more)
