"""The requests of Anthropic's Messages API as data, read as those of chat completions are. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from choreo.server.api_error import ApiError
from choreo.server.apis import ApiRequest, Extension, Strict
from choreo.server.reading import Nothing, TextPart, checked, json_object, supported, text_of_parts, validated
from choreo.server.structured import ApiMessage, Form, ToolCall

# As of chat completions.
IGNORED = frozenset(
    {
        "cache_control",
        "diagnostics",
        "inference_geo",
        "service_tier",
        "speed",
        "thinking",
        "user_profile_id",
        "workspace_id",
    }
)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "container": (),
    "context_management": (),
    "mcp_servers": ([],),
    "top_k": (),
    "top_p": (1,),
}


class TextBlock(TextPart):
    citations: Nothing = None


Content = str | Annotated[list[TextBlock], Field(min_length=1, fail_fast=True)]


class ToolUse(Strict):
    """A call of a tool in the conversation. cache_control and caller are ignored."""

    type: Literal["tool_use"]
    id: str
    name: Annotated[str, Field(min_length=1)]
    input: dict[str, Any]
    cache_control: Any = None
    caller: Any = None


class ToolResult(Strict):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Content | None = None
    is_error: bool = False
    cache_control: Any = None


Block = Annotated[TextBlock | ToolUse | ToolResult, Field(discriminator="type")]


class AnthropicMessage(Strict):
    role: Literal["system", "user", "assistant"]
    content: str | Annotated[list[Block], Field(min_length=1, fail_fast=True)]

    def at(self, place: str) -> Iterator[ApiMessage]:
        """This message as those of a game: every result of a tool is one. Raises ApiError where a block is another
        role's, or where a result does not stand before the user's words."""
        blocks = [] if isinstance(self.content, str) else self.content
        words = self.content if isinstance(self.content, str) else ""
        calls: list[ToolCall] = []
        for i, block in enumerate(blocks):
            owner = {"tool_use": "assistant", "tool_result": "user"}.get(block.type, self.role)
            if owner != self.role or (block.type == "tool_result" and words):
                where = f"{place}.content.{i}.type"
                raise ApiError(400, f"{where}: {block.type} is out of place", param=where, code="invalid_value")
            if isinstance(block, ToolUse):
                calls.append(ToolCall(block.id, block.name, json.dumps(block.input, ensure_ascii=False)))
            elif isinstance(block, ToolResult):
                text = ("Error: " if block.is_error else "") + text_of_parts(block.content or "")
                yield ApiMessage("tool", text, f"{place}.role", answers=block.tool_use_id)
            else:
                words += block.text
        if words or calls or not any(block.type == "tool_result" for block in blocks):
            yield ApiMessage(self.role, words, f"{place}.role", tuple(calls))


class SchemaFormat(Strict):
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Strict):
    """effort is ignored."""

    effort: Any = None
    format: SchemaFormat | None = None


class AnthropicTool(Strict):
    """type: of tools that the caller runs. cache_control is ignored."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: Any = None


class ToolChoice(Strict):
    type: Literal["auto", "any", "none", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class CallerMetadata(Strict):
    user_id: str | None = None


class MessagesRequest(Strict):
    model: str
    max_tokens: Annotated[int, Field(ge=1)]
    messages: Annotated[list[AnthropicMessage], Field(min_length=1, max_length=256, fail_fast=True)]
    system: Content | None = None
    stop_sequences: Annotated[list[str], Field(max_length=4)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    stream: bool | None = None
    output_config: OutputConfig | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    metadata: CallerMetadata | None = None
    choreo: Extension = Extension()


def read_messages(body: bytes) -> ApiRequest:
    """The request in `body`, read strictly. Raises ApiError, naming the parameter, for one that cannot be met."""
    read = validated(MessagesRequest, supported(json_object(body), IGNORED, NEUTRAL))
    told = [ApiMessage("system", text_of_parts(read.system), "system")] if read.system else []
    said = (one for i, message in enumerate(read.messages) for one in message.at(f"messages.{i}"))
    return checked(
        ApiRequest(
            model=read.model,
            conversation="messages",
            messages=(*told, *said),
            temperature=read.temperature,
            limit=read.max_tokens,
            stop=tuple(s for s in read.stop_sequences or () if s),
            stream=bool(read.stream),
            user=(read.metadata or CallerMetadata()).user_id or "",
            form=_form(read),
            choreo=read.choreo,
        )
    )


def _form(read: MessagesRequest) -> tuple[Form, str] | None:
    """What is asked of an answer's form, in the words of chat completions, and the field that asks first."""
    fields: dict[str, Any] = {}
    choice = read.tool_choice or ToolChoice(type="auto")
    if (choice.type == "tool") != (choice.name is not None):
        message = "tool_choice.name: is required with type tool, and allowed with no other"
        raise ApiError(400, message, param="tool_choice.name", code="invalid_value")
    if read.tools:
        fields["tools"] = [{"type": "function", "function": _function(tool)} for tool in read.tools]
        if choice.type != "auto":
            named = {"type": "function", "function": {"name": choice.name}}
            fields["tool_choice"] = {"any": "required", "none": "none"}.get(choice.type, named)
        if choice.disable_parallel_tool_use is not None:
            fields["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    elif choice.type not in ("auto", "none"):
        raise ApiError(400, "tool_choice needs tools", param="tool_choice", code="invalid_value")
    if read.output_config is not None and read.output_config.format is not None:
        schema = {"name": "answer", "strict": True, "schema": read.output_config.format.schema_}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return (Form(fields), "tools" if read.tools else "output_config.format") if fields else None


def _function(tool: AnthropicTool) -> dict[str, Any]:
    more = {"description": tool.description, "strict": tool.strict}
    given = {name: value for name, value in more.items() if value is not None}
    return {"name": tool.name, "parameters": tool.input_schema, **given}
