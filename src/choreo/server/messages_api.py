"""The replies and errors of Anthropic's Messages API as data. Its requests are read in `messages_requests`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from choreo.files import utf8
from choreo.server.api_error import ApiError
from choreo.server.apis import Api, ApiRequest, extension, final_answer, usage, withheld_text
from choreo.server.messages_requests import read_messages
from choreo.server.openai_responses import StageTokens, Trace, TracedMove
from choreo.server.session import Outcome
from choreo.server.structured import FormedTurn, ToolCall

MESSAGES_PATH = "/v1/messages"

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "refusal", "tool_use"]


class ReplyBlock(TypedDict):
    type: Literal["text"]
    text: str
    citations: None


class UseBlock(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


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
    content: list[ReplyBlock | UseBlock]
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
    """An error in the form of Anthropic's API."""
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
        final = final_answer(outcome, self.asked.stop)
        words = [] if final.calls and not final.text else [_block(final.text)]
        message["content"] = [*words, *map(_use, final.calls)]
        if self.asked.choreo.trace:
            message["choreo"] = extension(outcomes)
        return message

    def text(self, index: int, more: str, first: bool) -> list[dict[str, object]]:
        begun = [self._start(), _started(0, _block(""))] if first else []
        return [*begun, _delta(0, {"type": "text_delta", "text": more})]

    def move(self, index: int, move: TracedMove) -> list[dict[str, object]]:
        return []  # the whole trace is in the last event but one

    def end(self, index: int, outcome: Outcome, sent: str) -> list[dict[str, object]]:
        final = final_answer(outcome, self.asked.stop)
        rest = final.text[len(sent) :]
        events: list[dict[str, object]] = []
        if final.calls and not final.text:
            events = [self._start()]
        else:
            events = [*(self.text(index, rest, not sent) if rest or not sent else ()), _stopped(0)]
        for place, call in enumerate(final.calls, bool(final.text)):
            use: UseBlock = {**_use(call), "input": {}}
            given = {"type": "input_json_delta", "partial_json": call.arguments}
            events += [_started(place, use), _delta(place, given), _stopped(place)]
        return events

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

    def _start(self) -> dict[str, object]:
        return {"type": "message_start", "message": self._message()}

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
        final = final_answer(outcome, self.asked.stop)
        if final.finish == "content_filter" or final.refused:
            why = withheld_text(outcome) if outcome.withheld else final.text
            refusal: Refusal = {"type": "refusal", "category": None, "explanation": why}
            return {"stop_reason": "refusal", "stop_sequence": None, "stop_details": refusal}
        if outcome.answer is not None and not isinstance(outcome.answer, FormedTurn):
            after = outcome.answer.text[len(final.text) :]
            if after:
                cut = next(s for s in self.asked.stop if after.startswith(s))
                return {"stop_reason": "stop_sequence", "stop_sequence": cut, "stop_details": None}
        reasons: dict[str, StopReason] = {"length": "max_tokens", "tool_calls": "tool_use"}
        reason = reasons.get(final.finish, "end_turn")
        return {"stop_reason": reason, "stop_sequence": None, "stop_details": None}


def _started(place: int, block: ReplyBlock | UseBlock) -> dict[str, object]:
    return {"type": "content_block_start", "index": place, "content_block": block}


def _delta(place: int, delta: dict[str, str]) -> dict[str, object]:
    return {"type": "content_block_delta", "index": place, "delta": delta}


def _stopped(place: int) -> dict[str, object]:
    return {"type": "content_block_stop", "index": place}


def _use(call: ToolCall) -> UseBlock:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": utf8.repaired(json.loads(call.arguments))}


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
