"""OpenAI's chat completions as data: requests are read strictly; replies, chunks and errors are written. Pure.

A field that is not supported is refused by its name, unless it has a value that asks for nothing: many clients always
send it. A field that could not change what an answer says is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from choreo.files import utf8
from choreo.server.api_error import ApiError
from choreo.server.apis import Api, ApiMessage, ApiRequest, Extension, Strict
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
    TracedMove,
    Usage,
)
from choreo.server.session import STAGES, UNSAFE, WITHHELD, Outcome, traced, until_stop

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
        "service_tier",
        "store",
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
    user: str | None = None
    safety_identifier: str | None = None
    choreo: Extension = Extension()


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


def read_chat(body: bytes) -> ApiRequest:
    """The request in `body`, read strictly. Raises ApiError, naming the parameter, for one that cannot be met."""
    read = validated(ChatRequest, supported(json_object(body), IGNORED, NEUTRAL))
    if read.stream_options is not None and not read.stream:
        raise ApiError(400, "stream_options needs stream", param="stream_options", code="invalid_value")
    limits = [n for n in (read.max_tokens, read.max_completion_tokens) if n is not None]
    return checked(
        ApiRequest(
            model=read.model,
            conversation="messages",
            messages=tuple(
                ApiMessage(speaker(m.role), m.text, f"messages.{i}.role") for i, m in enumerate(read.messages)
            ),
            n=read.n or 1,
            temperature=read.temperature,
            limit=min(limits, default=None),
            stop=tuple(s for s in ([read.stop] if isinstance(read.stop, str) else read.stop or []) if s),
            seed=read.seed,
            stream=bool(read.stream),
            usage=read.stream_options is not None and read.stream_options.include_usage,
            user=read.safety_identifier or read.user or "",
            choreo=read.choreo,
        )
    )


def speaker(role: Literal["system", "developer", "user", "assistant"]) -> Literal["system", "user", "assistant"]:
    """The role of a message in a game: a developer's is that of a system message."""
    return "system" if role == "developer" else role


def checked(asked: ApiRequest) -> ApiRequest:
    """`asked`. Raises ApiError where the last message is not the user's, or an unchecked stream is no stream."""
    if asked.messages[-1].role != "user":
        last = asked.messages[-1].place
        raise ApiError(400, "the last message must be the user's", param=last, code="invalid_value")
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
        errors = error.errors(include_url=False, include_input=False)
        places = [_place(one["loc"], data, one["type"] == "missing") for one in errors]
        deepest = max(range(len(errors)), key=lambda i: len(places[i]))  # the others are of other ways to read a field
        param, first = ".".join(map(str, places[deepest])), errors[deepest]
        code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
        raise ApiError(400, f"{param}: {first['msg']}", param=param, code=code) from None


def _place(location: tuple[int | str, ...], data: Any, missing: bool) -> list[int | str]:
    """Where in `data` an error of pydantic is. Its locations also name the ways to read a field that has several."""
    found: list[int | str] = []
    for part in location:
        fields = data if isinstance(data, dict) else dict(enumerate(data)) if isinstance(data, list) else {}
        if part in fields:
            found.append(part)
            data = fields[part]
    return [*found, location[-1]] if missing else found


def _same(value: Any, other: Any) -> bool:
    """Equality of JSON values, where true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


class ChatWriter:
    """A `Writer` of chat completions, whose objects share their head."""

    done = b"data: [DONE]\n\n"

    def __init__(self, asked: ApiRequest, digits: str, created: int, fingerprint: str):
        self.asked, self.id = asked, f"chatcmpl-{digits}"
        self.head: ReplyHead = {
            "id": self.id,
            "created": created,
            "model": asked.model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, outcomes: Sequence[Outcome]) -> ChatCompletion:
        choices: list[Choice] = []
        for i, outcome in enumerate(outcomes):
            text, finish = final_text(outcome, self.asked.stop)
            message: AssistantMessage = {"role": "assistant", "content": text, "refusal": None}
            choices.append({"index": i, "message": message, "finish_reason": finish, "logprobs": None})
        body: ChatCompletion = {
            **self.head,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage(outcomes),
        }
        if self.asked.choreo.trace:
            body["choreo"] = extension(outcomes)
        return body

    def text(self, index: int, more: str, first: bool) -> list[Chunk]:
        return [self._chunk(index, {"role": "assistant", "content": more} if first else {"content": more})]

    def move(self, index: int, move: TracedMove) -> list[Chunk]:
        return [self._note({"choreo": {"index": index, "move": move}})]

    def end(self, index: int, outcome: Outcome, sent: str) -> list[Chunk]:
        text, finish = final_text(outcome, self.asked.stop)
        return [*self.text(index, text[len(sent) :], not sent), self._chunk(index, {}, finish)]

    def last(self, outcomes: Sequence[Outcome]) -> list[Chunk]:
        notes: list[Note] = [{"choreo": extension(outcomes)}] if self.asked.choreo.trace else []
        return [self._note(note) for note in [*notes, *([Note(usage=usage(outcomes))] if self.asked.usage else [])]]

    def error(self, error: ApiError) -> Error:
        return error.body

    def _chunk(self, index: int, delta: Delta, finish: Finish | None = None) -> Chunk:
        choice: ChunkChoice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice]}

    def _note(self, more: Note) -> Chunk:
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


def usage(outcomes: Sequence[Outcome]) -> Usage:
    """prompt_tokens are those of the draft's context. completion_tokens counts every token that was sampled; `choreo`
    says in which stage."""
    prompt = outcomes[0].moves[0].sampled.context_tokens
    draft, feedback, revision = (sum(outcome.tokens(stage) for outcome in outcomes) for stage in STAGES)
    own: StageTokens = {"draft_tokens": draft, "feedback_tokens": feedback, "revision_tokens": revision}
    total = draft + feedback + revision
    return {"prompt_tokens": prompt, "completion_tokens": total, "total_tokens": prompt + total, "choreo": own}


def extension(outcomes: Sequence[Outcome]) -> Trace:
    return {"mode": outcomes[0].mode, "choices": [traced(outcome) for outcome in outcomes]}


CHAT = Api(read_chat, ChatWriter)
