"""OpenAI's chat completions as data: requests are read strictly; replies, chunks and errors are written. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from choreo.server.api_error import ApiError
from choreo.server.apis import Api, ApiRequest, Extension, Final, Strict, extension, final_answer, usage
from choreo.server.openai_responses import (
    AssistantMessage,
    CalledTool,
    ChatCompletion,
    Choice,
    Chunk,
    ChunkChoice,
    Delta,
    Error,
    Finish,
    Note,
    ReplyHead,
    TracedMove,
)
from choreo.server.reading import (
    FunctionDefinition,
    FunctionName,
    Nothing,
    TextPart,
    checked,
    json_object,
    speaker,
    supported,
    text_of_parts,
    validated,
)
from choreo.server.session import Outcome
from choreo.server.structured import ApiMessage, Form, ToolCall, openai_call

# Fields that are taken and change nothing, whatever they say: hints on cost, on storage, and on how long a model thinks
# and writes. The last four are of other vendors.
IGNORED = frozenset(
    {
        "metadata",
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


class FunctionCall(Strict):
    name: Annotated[str, Field(min_length=1)]
    arguments: str


class FunctionTurn(Strict):
    """A call of a tool in the conversation. index: of a stream, ignored."""

    id: str
    type: Literal["function"]
    function: FunctionCall
    index: Any = None


class Message(Strict):
    """A list is read up to its first mistake: a body has room for 80,000.

    content: needed, but beside calls of tools, and in a refusal. tool_calls, refusal: of the assistant. tool_call_id:
    of a tool.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)] | None = None
    name: None = None
    refusal: str | None = None
    tool_calls: Annotated[list[FunctionTurn], Field(max_length=128, fail_fast=True)] | None = None
    tool_call_id: str | None = None
    function_call: None = None
    audio: None = None
    annotations: Nothing = None

    def at(self, place: str) -> ApiMessage:
        """This message, at `place` in the request. Raises ApiError where a field is missing, or is another role's."""
        calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in self.tool_calls or ())
        of_tool = "is required in a tool's message, and allowed in no other"
        for name, wrong, why in (
            ("content", self.content is None and not calls and self.refusal is None, "Field required"),
            ("tool_calls", bool(calls) and self.role != "assistant", "only the assistant calls tools"),
            ("refusal", self.refusal is not None and self.role != "assistant", "only the assistant refuses"),
            ("tool_call_id", (self.tool_call_id is None) == (self.role == "tool"), of_tool),
        ):
            if wrong:
                raise ApiError(400, f"{place}.{name}: {why}", param=f"{place}.{name}", code="invalid_value")
        text = text_of_parts(self.content or "") or self.refusal or ""
        return ApiMessage(speaker(self.role), text, f"{place}.role", calls, self.tool_call_id or "")


class FunctionTool(Strict):
    type: Literal["function"]
    function: FunctionDefinition


class ChosenFunction(Strict):
    type: Literal["function"]
    function: FunctionName


class AnswerSchema(Strict):
    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: AnswerSchema | None = None


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class ChatRequest(Strict):
    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=256, fail_fast=True)]
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
    tools: Annotated[list[FunctionTool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    choreo: Extension = Extension()


def read_chat(body: bytes) -> ApiRequest:
    """The request in `body`, read strictly. Raises ApiError, naming the parameter, for one that cannot be met."""
    data = supported(json_object(body), IGNORED, NEUTRAL)
    read = validated(ChatRequest, data)
    if read.stream_options is not None and not read.stream:
        raise ApiError(400, "stream_options needs stream", param="stream_options", code="invalid_value")
    limits = [n for n in (read.max_tokens, read.max_completion_tokens) if n is not None]
    return checked(
        ApiRequest(
            model=read.model,
            conversation="messages",
            messages=tuple(m.at(f"messages.{i}") for i, m in enumerate(read.messages)),
            n=read.n or 1,
            temperature=read.temperature,
            limit=min(limits, default=None),
            stop=tuple(s for s in ([read.stop] if isinstance(read.stop, str) else read.stop or []) if s),
            seed=read.seed,
            stream=bool(read.stream),
            usage=read.stream_options is not None and read.stream_options.include_usage,
            user=read.safety_identifier or read.user or "",
            form=_form(read, data),
            choreo=read.choreo,
        )
    )


def _form(read: ChatRequest, data: dict[str, Any]) -> tuple[Form, str] | None:
    """What `data` asks of an answer's form, as it says it, and the field that asks first."""
    fields: dict[str, Any] = {}
    if read.tools:
        names = ("tools", "tool_choice", "parallel_tool_calls")
        fields = {name: data[name] for name in names if data.get(name) is not None}
    elif read.tool_choice not in (None, "none", "auto"):
        raise ApiError(400, "tool_choice needs tools", param="tool_choice", code="invalid_value")
    if read.response_format is not None and read.response_format.type != "text":
        if (read.response_format.json_schema is None) == (read.response_format.type == "json_schema"):
            place = "response_format.json_schema"
            message = f"{place}: is required with type json_schema, and allowed with no other"
            raise ApiError(400, message, param=place, code="invalid_value")
        fields["response_format"] = data["response_format"]
    return (Form(fields), next(iter(fields))) if fields else None


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
            final = final_answer(outcome, self.asked.stop)
            choices.append({"index": i, "message": _message(final), "finish_reason": final.finish, "logprobs": None})
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
        final = final_answer(outcome, self.asked.stop)
        rest, begun = final.text[len(sent) :], bool(sent)
        chunks: list[Chunk] = []
        if final.refused:
            chunks = [self._chunk(index, {"role": "assistant", "refusal": rest})]
        elif final.calls:
            called: list[CalledTool] = [{**call, "index": i} for i, call in enumerate(map(openai_call, final.calls))]
            words: Delta = {"content": rest} if rest else {}
            chunks = [self._chunk(index, {"role": "assistant", **words, "tool_calls": called})]
        elif rest or not begun:
            chunks = self.text(index, rest, not begun)
        return [*chunks, self._chunk(index, {}, final.finish)]

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


def _message(final: Final) -> AssistantMessage:
    if final.refused:
        return {"role": "assistant", "content": None, "refusal": final.text}
    message: AssistantMessage = {"role": "assistant", "content": final.text, "refusal": None}
    if final.calls:
        message |= {"content": final.text or None, "tool_calls": [*map(openai_call, final.calls)]}
    return message


CHAT = Api(read_chat, ChatWriter)
