"""OpenAI's chat completions as data: requests are read strictly; replies, chunks and errors are written. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from choreo.server.api_error import ApiError
from choreo.server.apis import Api, ApiMessage, ApiRequest, Extension, Strict, extension, final_text, usage
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
    TracedMove,
)
from choreo.server.reading import Nothing, TextPart, checked, json_object, speaker, supported, text_of_parts, validated
from choreo.server.session import Outcome

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


class Message(Strict):
    """A list is read up to its first mistake: a body has room for 80,000."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
    name: None = None
    refusal: None = None
    tool_calls: Nothing = None
    function_call: None = None
    audio: None = None
    annotations: Nothing = None

    @property
    def text(self) -> str:
        return text_of_parts(self.content)


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
    choreo: Extension = Extension()


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


CHAT = Api(read_chat, ChatWriter)
