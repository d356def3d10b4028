"""The replies of OpenAI's Responses API as data. Its requests are read in `responses_requests`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from choreo.server.api_error import ApiError
from choreo.server.apis import Api, ApiRequest, Final, extension, final_answer, usage
from choreo.server.openai_responses import StageTokens, Trace, TracedMove
from choreo.server.responses_requests import read_responses
from choreo.server.session import Outcome
from choreo.server.structured import ToolCall


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


class OutputCall(TypedDict):
    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


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
    reason: Literal["max_output_tokens", "content_filter"]


class TextReply(TypedDict):
    format: dict[str, Any]


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
    output: list[OutputMessage | OutputCall]
    parallel_tool_calls: bool
    previous_response_id: None
    store: bool
    temperature: float | None
    text: TextReply
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
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
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
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
        final = final_answer(outcome, self.asked.stop)
        status = _status(outcome, final)
        response = self._response(status, self._items(outcome, final))
        response["usage"] = _usage(outcomes)
        if status == "incomplete":
            reason: IncompleteDetails = {
                "reason": "max_output_tokens" if final.finish == "length" else "content_filter"
            }
            response["incomplete_details"] = reason
        if self.asked.choreo.trace:
            response["choreo"] = extension(outcomes)
        return response

    def text(self, index: int, more: str, first: bool) -> list[dict[str, object]]:
        begun: list[dict[str, object]] = []
        if first:
            begun = [*self._begin(), *self._begin_message(_part(""))]
        return [*begun, self._of_part("response.output_text.delta", delta=more, logprobs=[])]

    def move(self, index: int, move: TracedMove) -> list[dict[str, object]]:
        return []  # the whole trace is in the last event

    def end(self, index: int, outcome: Outcome, sent: str) -> list[dict[str, object]]:
        final = final_answer(outcome, self.asked.stop)
        events = [] if sent else self._begin()
        for place, item in enumerate(self._items(outcome, final)):
            if item["type"] == "message":
                events += self._end_message(item, sent)
            else:
                events += self._call(item, place)
        return events

    def _end_message(self, item: OutputMessage, sent: str) -> list[dict[str, object]]:
        [part] = item["content"]
        if part["type"] == "refusal":
            events = [
                *self._begin_message(_part("", True)),
                self._of_part("response.refusal.delta", delta=part["refusal"]),
                self._of_part("response.refusal.done", refusal=part["refusal"]),
            ]
        else:
            text, rest = part["text"], part["text"][len(sent) :]
            events = [] if sent else self._begin_message(_part(""))
            if rest or not sent:
                events.append(self._of_part("response.output_text.delta", delta=rest, logprobs=[]))
            events.append(self._of_part("response.output_text.done", text=text, logprobs=[]))
        return [
            *events,
            self._of_part("response.content_part.done", part=part),
            self._event("response.output_item.done", output_index=0, item=item),
        ]

    def _call(self, item: OutputCall, place: int) -> list[dict[str, object]]:
        begun: OutputCall = {**item, "arguments": "", "status": "in_progress"}
        where = {"item_id": item["id"], "output_index": place}
        told = {"name": item["name"], "arguments": item["arguments"]}
        return [
            self._event("response.output_item.added", output_index=place, item=begun),
            self._event("response.function_call_arguments.delta", **where, delta=item["arguments"]),
            self._event("response.function_call_arguments.done", **where, **told),
            self._event("response.output_item.done", output_index=place, item=item),
        ]

    def last(self, outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
        response = self.whole(outcomes)
        return [self._event(f"response.{response['status']}", response=response)]

    def error(self, error: ApiError) -> dict[str, object]:
        details = error.body["error"]
        return self._event("error", **{name: details[name] for name in ("code", "message", "param")})

    def _items(self, outcome: Outcome, final: Final) -> list[OutputMessage | OutputCall]:
        """The words, and each call of a tool, are an item. There are no empty words beside calls."""
        refusal = final.refused or (outcome.withheld and not outcome.released)
        status = _status(outcome, final)
        words = [] if final.calls and not final.text else [self._message(status, [_part(final.text, refusal)])]
        return [*words, *(_call_item(call) for call in final.calls)]

    def _begin(self) -> list[dict[str, object]]:
        response = self._response("in_progress", [])
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]

    def _begin_message(self, part: Part) -> list[dict[str, object]]:
        message = self._message("in_progress", [])
        return [
            self._event("response.output_item.added", output_index=0, item=message),
            self._of_part("response.content_part.added", part=part),
        ]

    def _event(self, type: str, **more: object) -> dict[str, object]:
        self._sent += 1
        return {"type": type, "sequence_number": self._sent - 1, **more}

    def _of_part(self, type: str, **more: object) -> dict[str, object]:
        return self._event(type, item_id=self.item, output_index=0, content_index=0, **more)

    def _message(self, status: Status, content: list[Part]) -> OutputMessage:
        return {"type": "message", "id": self.item, "role": "assistant", "status": status, "content": content}

    def _response(self, status: Status, output: list[OutputMessage | OutputCall]) -> ResponseObject:
        asked = self.asked.form[0].fields if self.asked.form else {}
        choice = asked.get("tool_choice", "auto" if "tools" in asked else "none")
        written = asked.get("response_format", {"type": "text"})
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
            "parallel_tool_calls": asked.get("parallel_tool_calls", "tools" in asked),
            "previous_response_id": None,
            "store": False,
            "temperature": self.asked.temperature,
            "text": {"format": {"type": written["type"], **written.get("json_schema", {})}},
            "tool_choice": choice if isinstance(choice, str) else _flat(choice),
            "tools": [_flat(tool) for tool in asked.get("tools", ())],
            "top_p": 1,
            "truncation": "disabled",
            "usage": None,
        }


def _status(outcome: Outcome, final: Final) -> Status:
    return "incomplete" if final.finish == "length" or outcome.released else "completed"


def _call_item(call: ToolCall) -> OutputCall:
    return {
        "type": "function_call",
        "id": f"fc_{call.id}",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "status": "completed",
    }


def _flat(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool of chat completions as this API has it."""
    return {"type": "function", **tool["function"]}


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
