"""What a caller asks for, and how a reply is written, in whichever API: what the modules of the APIs have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from choreo.server.api_error import ApiError
from choreo.server.openai_responses import Finish, StageTokens, Trace, TracedMove, Usage
from choreo.server.session import STAGES, UNSAFE, WITHHELD, Mode, Outcome, traced, until_stop
from choreo.server.structured import ApiMessage, Form, FormedTurn, ToolCall

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


@dataclass(frozen=True)
class ApiRequest:
    """A request, whatever its API calls things.

    conversation: the field that holds it, for errors. messages: the last one is the user's, or a tool's. limit: tokens
    of an answer; None is the server's. usage: a stream of OpenAI's chat completions ends with what it used. user: what
    the caller calls its end user. form: what is asked of an answer's form, and the field that asks for it.
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
    form: tuple[Form, str] | None = None
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


class Final(NamedTuple):
    """What a caller gets. refused: the text is a refusal in place of the JSON that was asked for."""

    text: str
    finish: Finish
    calls: tuple[ToolCall, ...] = ()
    refused: bool = False


def final_answer(outcome: Outcome, stop: Sequence[str]) -> Final:
    """What a caller gets in the end. Of an answer that is withheld after a part of it has left, that part."""
    answer = outcome.answer
    if answer is None:
        return Final(outcome.released or withheld_text(outcome), "content_filter")
    if isinstance(answer, FormedTurn):  # its server has seen to the stop strings
        finish: Finish = "tool_calls" if answer.calls else "stop" if answer.finished else "length"
        return Final(answer.content, finish, answer.calls, answer.refused)
    text = until_stop(answer.text, stop)
    stopped = answer.finished or len(text) < len(answer.text)
    return Final(text, "stop" if stopped else "length")


def withheld_text(outcome: Outcome) -> str:
    """The sentence that says why an answer is withheld."""
    return UNSAFE if outcome.failed in ("revision", "segment") else WITHHELD


def usage(outcomes: Sequence[Outcome]) -> Usage:
    """prompt_tokens are those of the draft's context. completion_tokens counts every token that was sampled; `choreo`
    says in which stage."""
    prompt = outcomes[0].moves[0].sampled.context_tokens
    draft, feedback, revision = (sum(outcome.tokens(stage) for outcome in outcomes) for stage in STAGES)
    own: StageTokens = {"draft_tokens": draft, "feedback_tokens": feedback, "revision_tokens": revision}
    total = draft + feedback + revision
    return {"prompt_tokens": prompt, "completion_tokens": total, "total_tokens": prompt + total, "choreo": own}


def extension(outcomes: Sequence[Outcome]) -> Trace:
    """choreo's own field of a reply: what its games were, in every API alike."""
    return {"mode": outcomes[0].mode, "choices": [traced(outcome) for outcome in outcomes]}
