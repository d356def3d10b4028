"""Anthropic's Messages API as data: its requests, read as those of chat completions are, its replies and its errors.
Text alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from choreo.server.api_error import ApiError
from choreo.server.apis import Api, ApiMessage, ApiRequest, Extension, Strict
from choreo.server.openai_requests import (
    Nothing,
    TextPart,
    checked,
    extension,
    final_text,
    json_object,
    supported,
    usage,
    validated,
)
from choreo.server.openai_responses import StageTokens, Trace, TracedMove
from choreo.server.session import Outcome

MESSAGES_PATH = "/v1/messages"

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
    "tool_choice": ({"type": "none"}, {"type": "auto"}),
    "tools": ([],),
    "top_k": (),
    "top_p": (1,),
}


class TextBlock(TextPart):
    citations: Nothing = None


Content = str | Annotated[list[TextBlock], Field(min_length=1)]


class AnthropicMessage(Strict):
    role: Literal["system", "user", "assistant"]
    content: Content


class OutputConfig(Strict):
    """effort is ignored."""

    effort: Any = None
    format: None = None


class CallerMetadata(Strict):
    user_id: str | None = None


class MessagesRequest(Strict):
    model: str
    max_tokens: Annotated[int, Field(ge=1)]
    messages: Annotated[list[AnthropicMessage], Field(min_length=1, max_length=256)]
    system: Content | None = None
    stop_sequences: Annotated[list[str], Field(max_length=4)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    stream: bool | None = None
    output_config: OutputConfig | None = None
    metadata: CallerMetadata | None = None
    choreo: Extension = Extension()


def read_messages(body: bytes) -> ApiRequest:
    """The request in `body`, read strictly. Raises ApiError, naming the parameter, for one that cannot be met."""
    read = validated(MessagesRequest, supported(json_object(body), IGNORED, NEUTRAL))
    told = [ApiMessage("system", _text(read.system), "system")] if read.system else []
    said = (ApiMessage(m.role, _text(m.content), f"messages.{i}.role") for i, m in enumerate(read.messages))
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
            choreo=read.choreo,
        )
    )


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "refusal"]


class ReplyBlock(TypedDict):
    type: Literal["text"]
    text: str
    citations: None


class Refusal(TypedDict):
    type: Literal["refusal"]
    category: None
    explanation: str


class Stopped(TypedDict):
    """Why an answer ended. stop_details: of a refusal."""

    stop_reason: StopReason | None
    stop_sequence: str | None
    stop_details: Refusal | None


class MessagesUsage(TypedDict):
    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    choreo: NotRequired[StageTokens]


class MessageReply(Stopped):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ReplyBlock]
    usage: MessagesUsage
    choreo: NotRequired[Trace]


class MessageEvent(TypedDict):
    """An event of a stream, with what this type of event holds."""

    type: Literal[
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    ]


class AnthropicErrorDetails(TypedDict):
    type: str
    message: str


class AnthropicError(TypedDict):
    type: Literal["error"]
    error: AnthropicErrorDetails


ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_error(error: ApiError) -> AnthropicError:
    kind = ERROR_TYPES.get(error.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.body["error"]["message"]}}


class MessagesWriter:
    """A `Writer` of messages. An answer that is withheld ends with the reason "refusal"."""

    done = b""

    def __init__(self, asked: ApiRequest, digits: str, created: int, fingerprint: str):
        self.asked, self.id = asked, f"msg_{digits}"

    def whole(self, outcomes: Sequence[Outcome]) -> MessageReply:
        [outcome] = outcomes
        message: MessageReply = {**self._message(), **self._stopped(outcome), "usage": _usage(outcomes)}
        message["content"] = [_block(final_text(outcome, self.asked.stop)[0])]
        if self.asked.choreo.trace:
            message["choreo"] = extension(outcomes)
        return message

    def text(self, index: int, more: str, first: bool) -> list[dict[str, object]]:
        begun: list[dict[str, object]] = [
            {"type": "message_start", "message": self._message()},
            {"type": "content_block_start", "index": 0, "content_block": _block("")},
        ]
        delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": more}}
        return [*(begun if first else ()), delta]

    def move(self, index: int, move: TracedMove) -> list[dict[str, object]]:
        return []  # the whole trace is in the last event but one

    def end(self, index: int, outcome: Outcome, sent: str) -> list[dict[str, object]]:
        rest = final_text(outcome, self.asked.stop)[0][len(sent) :]
        return [*self.text(index, rest, not sent), {"type": "content_block_stop", "index": 0}]

    def last(self, outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
        ended: dict[str, object] = {
            "type": "message_delta",
            "delta": self._stopped(outcomes[0]),
            "usage": _usage(outcomes),
        }
        if self.asked.choreo.trace:
            ended["choreo"] = extension(outcomes)
        return [ended, {"type": "message_stop"}]

    def error(self, error: ApiError) -> AnthropicError:
        return anthropic_error(error)

    def _message(self) -> MessageReply:
        """A message as it begins."""
        none: MessagesUsage = {
            "input_tokens": 0,
            "output_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
        }
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.asked.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "usage": none,
        }

    def _stopped(self, outcome: Outcome) -> Stopped:
        text, finish = final_text(outcome, self.asked.stop)
        if finish == "content_filter":
            refusal: Refusal = {"type": "refusal", "category": None, "explanation": text}
            return {"stop_reason": "refusal", "stop_sequence": None, "stop_details": refusal}
        if outcome.answer is not None and len(text) < len(outcome.answer.text):
            cut = next(s for s in self.asked.stop if outcome.answer.text.startswith(s, len(text)))
            return {"stop_reason": "stop_sequence", "stop_sequence": cut, "stop_details": None}
        reason: StopReason = "max_tokens" if finish == "length" else "end_turn"
        return {"stop_reason": reason, "stop_sequence": None, "stop_details": None}


def _block(text: str) -> ReplyBlock:
    return {"type": "text", "text": text, "citations": None}


def _usage(outcomes: Sequence[Outcome]) -> MessagesUsage:
    used = usage(outcomes)
    return {
        "input_tokens": used["prompt_tokens"],
        "output_tokens": used["completion_tokens"],
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "choreo": used["choreo"],
    }


MESSAGES = Api(read_messages, MessagesWriter, x_api_key=True)
