"""The requests of OpenAI's Responses API as data, read as those of chat completions are. Nothing is stored: every
request has the whole conversation. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from choreo.server.api_error import ApiError
from choreo.server.apis import ApiRequest, Extension, Strict
from choreo.server.reading import (
    FunctionDefinition,
    FunctionName,
    Nothing,
    checked,
    json_object,
    speaker,
    supported,
    text_of_parts,
    validated,
)
from choreo.server.structured import ApiMessage, Form, ToolCall

# As of chat completions.
IGNORED = frozenset(
    {
        "max_tool_calls",
        "metadata",
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
    content: str | Annotated[list[InputText | PastText | PastRefusal], Field(min_length=1, fail_fast=True)]
    id: Any = None
    status: Any = None
    phase: Any = None

    def at(self, place: str) -> ApiMessage:
        return ApiMessage(speaker(self.role), text_of_parts(self.content), f"{place}.role")


class CallItem(Strict):
    """A call of a tool in the conversation. id and status are ignored, here and below."""

    type: Literal["function_call"]
    call_id: str
    name: Annotated[str, Field(min_length=1)]
    arguments: str
    id: Any = None
    status: Any = None

    def at(self, place: str) -> ApiMessage:
        call = ToolCall(self.call_id, self.name, self.arguments)
        return ApiMessage("assistant", "", f"{place}.type", (call,))


class ResultItem(Strict):
    type: Literal["function_call_output"]
    call_id: str
    output: str | Annotated[list[InputText], Field(min_length=1, fail_fast=True)]
    id: Any = None
    status: Any = None

    def at(self, place: str) -> ApiMessage:
        return ApiMessage("tool", text_of_parts(self.output), f"{place}.type", answers=self.call_id)


def _kind(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else None
    return kind if kind in ("function_call", "function_call_output") else "message"


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")],
    Discriminator(_kind),
]


class AnswerFormat(Strict):
    """name, schema and the others are of json_schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextSettings(Strict):
    """verbosity is ignored."""

    format: AnswerFormat | None = None
    verbosity: Any = None


class OfType(Strict):
    type: Literal["function"]


class ResponsesTool(FunctionDefinition, OfType):  # the type is read first: a tool of another type has other fields
    pass


class ChosenTool(FunctionName, OfType):
    pass


class ResponsesRequest(Strict):
    model: str
    input: str | Annotated[list[Item], Field(min_length=1, max_length=256, fail_fast=True)]
    instructions: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    text: TextSettings | None = None
    tools: Annotated[list[ResponsesTool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
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
        said += _joined(item.at(f"input.{i}") for i, item in enumerate(read.input))
    return checked(
        ApiRequest(
            model=read.model,
            conversation="input",
            messages=tuple(said),
            temperature=read.temperature,
            limit=read.max_output_tokens,
            stream=bool(read.stream),
            user=read.safety_identifier or read.user or "",
            form=_form(read),
            choreo=read.choreo,
        )
    )


def _joined(messages: Iterable[ApiMessage]) -> list[ApiMessage]:
    """The messages, where what the assistant said and called at once is one of them: here, each call comes alone."""
    joined: list[ApiMessage] = []
    for one in messages:
        if one.calls and joined and joined[-1].role == "assistant":
            joined[-1] = joined[-1]._replace(calls=(*joined[-1].calls, *one.calls))
        else:
            joined.append(one)
    return joined


def _form(read: ResponsesRequest) -> tuple[Form, str] | None:
    """What is asked of an answer's form, in the words of chat completions, and the field that asks first."""
    fields: dict[str, Any] = {}
    if read.tools:
        given = (tool.model_dump(exclude_none=True, exclude={"type"}) for tool in read.tools)
        fields["tools"] = [{"type": "function", "function": one} for one in given]
        if isinstance(choice := read.tool_choice, ChosenTool):
            fields["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        elif choice is not None:
            fields["tool_choice"] = choice
        if read.parallel_tool_calls is not None:
            fields["parallel_tool_calls"] = read.parallel_tool_calls
    elif read.tool_choice not in (None, "none", "auto"):
        raise ApiError(400, "tool_choice needs tools", param="tool_choice", code="invalid_value")
    asked = read.text.format if read.text else None
    if asked is not None:
        schema = asked.model_dump(by_alias=True, exclude_none=True, exclude={"type"})
        of_schema = asked.type == "json_schema"
        wrong = {"name", "schema"} - {*schema} if of_schema else {*schema}
        for name in sorted(wrong):
            place = f"text.format.{name}"
            why = "is required with type json_schema" if of_schema else "is allowed with type json_schema alone"
            raise ApiError(400, f"{place}: {why}", param=place, code="invalid_value")
        if asked.type != "text":
            fields["response_format"] = {"type": asked.type, **({"json_schema": schema} if schema else {})}
    return (Form(fields), "tools" if read.tools else "text.format") if fields else None
