"""What a caller asks for, and how a reply is written, in whichever API: what the modules of the APIs have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from choreo.server.api_error import ApiError
from choreo.server.openai_responses import TracedMove
from choreo.server.session import Mode, Outcome

Event = Mapping[str, object]  # one event of a stream, as JSON


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Extension(Strict):
    """The fields that only choreo has. Each needs a key that allows it.

    mode: another than the server's. trace: the whole game in the reply, drafts in the clear.
    stream: "unchecked" passes the draft on while it is sampled; it is reviewed afterwards, for the record alone.
    """

    mode: Mode | None = None
    trace: bool = False
    stream: Literal["checked", "unchecked"] = "checked"


class ApiMessage(NamedTuple):
    """A message of a conversation. place: the field of the request that holds its role, for errors."""

    role: Literal["system", "user", "assistant"]
    text: str
    place: str


@dataclass(frozen=True)
class ApiRequest:
    """A request, whatever its API calls things.

    conversation: the field that holds it, for errors. messages: the last one is the user's. limit: tokens of an
    answer; None is the server's. usage: a stream of OpenAI's chat completions ends with what it used. user: what the
    caller calls its end user.
    """

    model: str
    conversation: str
    messages: tuple[ApiMessage, ...]
    n: int = 1
    temperature: float | None = None
    limit: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    stream: bool = False
    usage: bool = False
    user: str = ""
    choreo: Extension = field(default_factory=Extension)


class Writer(Protocol):
    """Writes one reply, whole or as events.

    id: the reply's. done: the bytes that end a stream which has not failed.
    """

    id: str
    done: bytes

    def whole(self, outcomes: Sequence[Outcome]) -> Mapping[str, object]: ...

    def text(self, index: int, more: str, first: bool) -> Sequence[Event]:
        """More text of an answer. first: nothing of it has been sent yet."""
        ...

    def move(self, index: int, move: TracedMove) -> Sequence[Event]:
        """A move of a game, for a caller who asked for the trace."""
        ...

    def end(self, index: int, outcome: Outcome, sent: str) -> Sequence[Event]:
        """The end of an answer, with what of its text has not been sent."""
        ...

    def last(self, outcomes: Sequence[Outcome]) -> Sequence[Event]:
        """What ends the reply."""
        ...

    def error(self, error: ApiError) -> Event:
        """What ends a reply that failed after its first event."""
        ...


class Api(NamedTuple):
    """One API.

    read: a request out of a body; raises ApiError that names the field. writer: from a request, random hexadecimal
    digits, the time in seconds, and the fingerprint of what is served. x_api_key: its clients may send their key so.
    """

    read: Callable[[bytes], ApiRequest]
    writer: Callable[[ApiRequest, str, int, str], Writer]
    x_api_key: bool = False
