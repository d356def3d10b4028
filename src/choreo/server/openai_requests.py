"""OpenAI's chat completions as data: requests are read strictly; replies, chunks and errors are written. Pure.

A field that is not supported is refused by its name, unless it has a value that asks for nothing: many clients always
send it. A field that could not change what an answer says is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from choreo.files import utf8
from choreo.server.openai_responses import (
    AssistantMessage,
    ChatCompletion,
    Choice,
    Chunk,
    ChunkChoice,
    Delta,
    Error,
    Finish,
    Note,
    ReplyHead,
    StageTokens,
    Trace,
    Usage,
)
from choreo.server.session import STAGES, UNSAFE, WITHHELD, Mode, Outcome, traced, until_stop

M = TypeVar("M", bound=BaseModel)

# Fields that are taken and change nothing, whatever they say: hints on cost, on storage, and on how long a model thinks
# and writes. The last four are of other vendors.
IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",  # there are no tools
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
        "enable_thinking",
        "keep_alive",
        "reasoning",
        "thinking",
    }
)
# Fields that would change what an answer says and are not supported, each with the values that ask for nothing. The
# last three are of other vendors.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "moderation": (),
    "top_k": (-1, 0),
    "min_p": (0,),
    "repetition_penalty": (1,),
}


class ApiError(Exception):
    """An error as OpenAI's API gives it. headers: sent with it, as Retry-After is."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body: Error = {"error": {"message": message, "type": type, "param": param, "code": code}}


def internal() -> ApiError:
    """An error of our code. The client learns nothing of it."""
    return ApiError(500, "internal error", type="server_error", code="internal_error")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Nothing = Annotated[list[Any], Field(max_length=0)] | None


class TextPart(Strict):
    """cache_control and prompt_cache_breakpoint are ignored."""

    type: Literal["text"]
    text: str
    cache_control: Any = None
    prompt_cache_breakpoint: Any = None


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: None = None
    refusal: None = None
    tool_calls: Nothing = None
    function_call: None = None
    audio: None = None
    annotations: Nothing = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class Extension(Strict):
    """The fields that only choreo has. Each needs a key that allows it.

    mode: another than the server's. trace: the whole game in the reply, drafts in the clear.
    stream: "unchecked" passes the draft on while it is sampled; it is reviewed afterwards, for the record alone.
    """

    mode: Mode | None = None
    trace: bool = False
    stream: Literal["checked", "unchecked"] = "checked"


class ChatRequest(Strict):
    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    choreo: Extension = Extension()

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(s for s in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if s)

    @property
    def limit(self) -> int | None:
        given = [n for n in (self.max_tokens, self.max_completion_tokens) if n is not None]
        return min(given, default=None)


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises ApiError for anything else."""
    data = json_value(body)
    if not isinstance(data, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return data


def json_value(body: bytes) -> Any:
    """The JSON value in `body`. Raises ApiError for what is not JSON, or holds half a surrogate pair."""
    try:
        data = json.loads(body, parse_constant=_refuse)
        wrong = utf8.broken(data)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not JSON in UTF-8", code="invalid_json") from None
    if wrong:
        message = f"the body is not JSON in UTF-8: {wrong[1]}"
        raise ApiError(400, message, param=".".join(wrong[0]) or None, code="invalid_json")
    return data


def read_request(body: bytes) -> ChatRequest:
    """The request in `body`, read strictly. Raises ApiError, naming the parameter, for one that cannot be met."""
    data = json_object(body)
    asked = validated(ChatRequest, supported(data, IGNORED, NEUTRAL))
    if asked.messages[-1].role != "user":
        last = f"messages.{len(asked.messages) - 1}.role"
        raise ApiError(400, "the last message must be the user's", param=last, code="invalid_value")
    if asked.stream_options is not None and not asked.stream:
        raise ApiError(400, "stream_options needs stream", param="stream_options", code="invalid_value")
    if asked.choreo.stream == "unchecked" and not asked.stream:
        raise ApiError(400, "an unchecked stream needs stream", param="choreo.stream", code="invalid_value")
    return asked


def supported(data: dict[str, Any], ignored: Collection[str], neutral: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """`data` without the fields that change nothing. Raises ApiError that names one of `neutral` which asks for
    something. null asks for nothing."""
    for name, values in neutral.items():
        value = data.get(name)
        if value is not None and not any(_same(value, other) for other in values):
            raise ApiError(400, f"{name} is not supported here", param=name, code="unsupported_parameter")
    return {name: value for name, value in data.items() if name not in ignored and name not in neutral}


def validated(model: type[M], data: dict[str, Any]) -> M:
    """`data` as `model` reads it. Raises ApiError that names the parameter."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"]))
        code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
        raise ApiError(400, f"{param}: {first['msg']}", param=param, code=code) from None


def _same(value: Any, other: Any) -> bool:
    """Equality of JSON values, where true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


class ReplyWriter:
    """Writes the objects of one reply, which share their head."""

    def __init__(self, id: str, created: int, model: str, fingerprint: str):
        self.head: ReplyHead = {"id": id, "created": created, "model": model, "system_fingerprint": fingerprint}

    def completion(
        self, outcomes: Sequence[Outcome], stop: Sequence[str], prompt: int, with_trace: bool
    ) -> ChatCompletion:
        """A chat.completion; prompt: tokens of the draft's context."""
        choices: list[Choice] = []
        for i, outcome in enumerate(outcomes):
            text, finish = final_text(outcome, stop)
            message: AssistantMessage = {"role": "assistant", "content": text, "refusal": None}
            choices.append({"index": i, "message": message, "finish_reason": finish, "logprobs": None})
        body: ChatCompletion = {
            **self.head,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage(outcomes, prompt),
        }
        if with_trace:
            body["choreo"] = extension(outcomes)
        return body

    def chunk(self, index: int, delta: Delta, finish: Finish | None = None) -> Chunk:
        choice: ChunkChoice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice]}

    def note(self, more: Note) -> Chunk:
        """A chunk without choices: usage, or choreo's own."""
        return {**self.head, "object": "chat.completion.chunk", "choices": [], **more}


def final_text(outcome: Outcome, stop: Sequence[str]) -> tuple[str, Finish]:
    """The text that a caller gets, and its finish_reason."""
    answer = outcome.answer
    if answer is None:
        return UNSAFE if outcome.failed == "revision" else WITHHELD, "content_filter"
    text = until_stop(answer.text, stop)
    stopped = answer.finished or len(text) < len(answer.text)
    return text, "stop" if stopped else "length"


def usage(outcomes: Sequence[Outcome], prompt: int) -> Usage:
    """completion_tokens counts every token that was sampled; `choreo` says in which stage."""
    draft, feedback, revision = (sum(outcome.tokens(stage) for outcome in outcomes) for stage in STAGES)
    own: StageTokens = {"draft_tokens": draft, "feedback_tokens": feedback, "revision_tokens": revision}
    total = draft + feedback + revision
    return {"prompt_tokens": prompt, "completion_tokens": total, "total_tokens": prompt + total, "choreo": own}


def extension(outcomes: Sequence[Outcome]) -> Trace:
    return {"mode": outcomes[0].mode, "choices": [traced(outcome) for outcome in outcomes]}
