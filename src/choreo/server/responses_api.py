"""OpenAI's Responses API as data: its requests, read as those of chat completions are, and its replies. Text alone, and
nothing is stored: every request has the whole conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from choreo.server.api_error import ApiError
from choreo.server.apis import Api, ApiMessage, ApiRequest, Extension, Strict
from choreo.server.openai_requests import (
    Nothing,
    checked,
    extension,
    final_text,
    json_object,
    speaker,
    supported,
    usage,
    validated,
)
from choreo.server.openai_responses import StageTokens, Trace, TracedMove
from choreo.server.session import Outcome

# As of chat completions.
IGNORED = frozenset(
    {
        "max_tool_calls",
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
        "service_tier",
        "store",
    }
)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "access_programs": (),
    "background": (False,),
    "background_options": (),
    "context_management": ([],),
    "conversation": (),
    "image": (),
    "include": ([], ["reasoning.encrypted_content"]),  # there is no reasoning to be included
    "moderation": (),
    "previous_response_id": (),
    "prompt": (),
    "stream_options": ({}, {"include_obfuscation": False}),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "top_p": (1,),
    "truncation": ("disabled",),
}


class InputText(Strict):
    """prompt_cache_breakpoint is ignored."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: Any = None


class PastText(Strict):
    """A part of an earlier reply. What choreo never writes has to be empty."""

    type: Literal["output_text"]
    text: str
    annotations: Nothing = None
    logprobs: Nothing = None


class PastRefusal(Strict):
    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


class InputMessage(Strict):
    """A message of the conversation; an earlier reply too, as it was sent. id, status and phase are ignored."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputText | PastText | PastRefusal], Field(min_length=1)]
    id: Any = None
    status: Any = None
    phase: Any = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class PlainFormat(Strict):
    type: Literal["text"]


class TextSettings(Strict):
    """verbosity is ignored."""

    format: PlainFormat | None = None
    verbosity: Any = None


class ResponsesRequest(Strict):
    model: str
    input: str | Annotated[list[InputMessage], Field(min_length=1, max_length=256)]
    instructions: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    text: TextSettings | None = None
    user: str | None = None
    safety_identifier: str | None = None
    choreo: Extension = Extension()


def read_responses(body: bytes) -> ApiRequest:
    """The request in `body`, read strictly. Raises ApiError, naming the parameter, for one that cannot be met."""
    read = validated(ResponsesRequest, supported(json_object(body), IGNORED, NEUTRAL))
    said = [ApiMessage("system", read.instructions, "instructions")] if read.instructions else []
    if isinstance(read.input, str):
        said.append(ApiMessage("user", read.input, "input"))
    else:
        said += [ApiMessage(speaker(m.role), m.text, f"input.{i}.role") for i, m in enumerate(read.input)]
    return checked(
        ApiRequest(
            model=read.model,
            conversation="input",
            messages=tuple(said),
            temperature=read.temperature,
            limit=read.max_output_tokens,
            stream=bool(read.stream),
            user=read.safety_identifier or read.user or "",
            choreo=read.choreo,
        )
    )


class OutputText(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: list[None]
    logprobs: list[None]


class OutputRefusal(TypedDict):
    type: Literal["refusal"]
    refusal: str


Part = OutputText | OutputRefusal
Status = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(TypedDict):
    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: Status
    content: list[Part]


class InputDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(TypedDict):
    reasoning_tokens: int


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int
    choreo: StageTokens


class IncompleteDetails(TypedDict):
    reason: Literal["max_output_tokens"]


class TextFormat(TypedDict):
    type: Literal["text"]


class TextReply(TypedDict):
    format: TextFormat


class ResponseObject(TypedDict):
    """The fields that clients need, and those of what was asked for."""

    object: Literal["response"]
    id: str
    created_at: int
    model: str
    status: Status
    error: None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    output: list[OutputMessage]
    parallel_tool_calls: bool
    previous_response_id: None
    store: bool
    temperature: float | None
    text: TextReply
    tool_choice: Literal["none"]
    tools: list[None]
    top_p: int
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    choreo: NotRequired[Trace]


class ResponseEvent(TypedDict):
    """An event of a stream: its number in it, and what this type of event holds."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.refusal.delta",
        "response.refusal.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "error",
    ]
    sequence_number: int


class ResponsesWriter:
    """A `Writer` of responses. An answer that is withheld is a refusal."""

    done = b""

    def __init__(self, asked: ApiRequest, digits: str, created: int, fingerprint: str):
        self.asked, self.created = asked, created
        self.id, self.item = f"resp_{digits}", f"msg_{digits}"
        self._sent = 0  # events

    def whole(self, outcomes: Sequence[Outcome]) -> ResponseObject:
        [outcome] = outcomes
        text, finish = final_text(outcome, self.asked.stop)
        status: Status = "incomplete" if finish == "length" else "completed"
        response = self._response(status, [self._message(status, [_part(text, outcome.withheld)])])
        response["usage"] = _usage(outcomes)
        if finish == "length":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        if self.asked.choreo.trace:
            response["choreo"] = extension(outcomes)
        return response

    def text(self, index: int, more: str, first: bool) -> list[dict[str, object]]:
        begun = [*self._begin(), self._of_part("response.content_part.added", part=_part(""))] if first else []
        return [*begun, self._of_part("response.output_text.delta", delta=more, logprobs=[])]

    def move(self, index: int, move: TracedMove) -> list[dict[str, object]]:
        return []  # the whole trace is in the last event

    def end(self, index: int, outcome: Outcome, sent: str) -> list[dict[str, object]]:
        text, finish = final_text(outcome, self.asked.stop)
        part = _part(text, outcome.withheld)
        if outcome.withheld:
            events = [
                *self._begin(),
                self._of_part("response.content_part.added", part=_part("", True)),
                self._of_part("response.refusal.delta", delta=text),
                self._of_part("response.refusal.done", refusal=text),
            ]
        else:
            events = self.text(index, text[len(sent) :], not sent)
            events.append(self._of_part("response.output_text.done", text=text, logprobs=[]))
        message = self._message("incomplete" if finish == "length" else "completed", [part])
        return [
            *events,
            self._of_part("response.content_part.done", part=part),
            self._event("response.output_item.done", output_index=0, item=message),
        ]

    def last(self, outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
        response = self.whole(outcomes)
        return [self._event(f"response.{response['status']}", response=response)]

    def error(self, error: ApiError) -> dict[str, object]:
        details = error.body["error"]
        return self._event("error", **{name: details[name] for name in ("code", "message", "param")})

    def _begin(self) -> list[dict[str, object]]:
        response, message = self._response("in_progress", []), self._message("in_progress", [])
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
            self._event("response.output_item.added", output_index=0, item=message),
        ]

    def _event(self, type: str, **more: object) -> dict[str, object]:
        self._sent += 1
        return {"type": type, "sequence_number": self._sent - 1, **more}

    def _of_part(self, type: str, **more: object) -> dict[str, object]:
        return self._event(type, item_id=self.item, output_index=0, content_index=0, **more)

    def _message(self, status: Status, content: list[Part]) -> OutputMessage:
        return {"type": "message", "id": self.item, "role": "assistant", "status": status, "content": content}

    def _response(self, status: Status, output: list[OutputMessage]) -> ResponseObject:
        told = next((one.text for one in self.asked.messages if one.place == "instructions"), None)
        return {
            "object": "response",
            "id": self.id,
            "created_at": self.created,
            "model": self.asked.model,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": told,
            "max_output_tokens": self.asked.limit,
            "metadata": {},
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": self.asked.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": 1,
            "truncation": "disabled",
            "usage": None,
        }


def _part(text: str, withheld: bool = False) -> Part:
    if withheld:
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(outcomes: Sequence[Outcome]) -> ResponseUsage:
    used = usage(outcomes)
    return {
        "input_tokens": used["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": used["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used["total_tokens"],
        "choreo": used["choreo"],
    }


RESPONSES = Api(read_responses, ResponsesWriter)
