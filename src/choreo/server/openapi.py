"""What the server takes and sends, as OpenAPI 3.1: made of the models that check requests and the types of replies.

It declares every status that a handler answers with. Two are left out on purpose: 499, which is counted where a client
has left and reaches nobody, and 500, which is a bug.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

import choreo
from choreo.server import messages_requests, openai_requests, responses_requests
from choreo.server.guardrail import PATH, GuardrailRequest
from choreo.server.messages_api import MESSAGES_PATH, AnthropicError, MessageEvent, MessageReply
from choreo.server.messages_requests import MessagesRequest
from choreo.server.openai_requests import ChatRequest
from choreo.server.openai_responses import (
    Action,
    ChatCompletion,
    Chunk,
    Error,
    Health,
    Ready,
    ServedModel,
    ServedModels,
)
from choreo.server.pages import files_of
from choreo.server.responses_api import ResponseEvent, ResponseObject
from choreo.server.responses_requests import ResponsesRequest

ERRORS = {
    400: "what was asked for cannot be met; the message, or `param`, names it",
    401: "no valid key",
    403: "the key does not allow it",
    404: "no such model",
    408: "the body did not come in time",
    413: "the body is too large",
    429: "a limit of the key, or of its end user, is reached",
    503: "the queue is full, an agent is down, or (as plain text) there are too many connections",
    504: "no draft before the deadline",
}
HEADERS = {401: ("WWW-Authenticate", "Bearer"), 429: ("Retry-After", "seconds"), 503: ("Retry-After", "seconds")}
POSTED = (400, 401, 408, 413, 429, 503)
BEARER: tuple[str, ...] = ("bearer",)


@dataclass(frozen=True)
class Operation:
    """One operation of the API.

    answers: a type or a schema, by media type. keys: the ways to send a key, one of which is needed.
    error: how its errors look.
    """

    summary: str
    answers: dict[str, Any]
    errors: tuple[int, ...] = ()
    body: Any = None
    keys: tuple[str, ...] = BEARER
    error: Any = Error
    parameters: list[dict[str, Any]] = field(default_factory=list)


TEXT = {"type": "string"}
DATA = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("Chunk", "Error")]}


def _named(event: str) -> dict[str, Any]:
    """The schema of a stream's event that is named by its type."""
    data = {"$ref": f"#/components/schemas/{event}"}
    return {
        "type": "object",
        "required": ["event", "data"],
        "properties": {
            "event": TEXT,
            "data": {**TEXT, "contentMediaType": "application/json", "contentSchema": data},
        },
    }


ALSO = (Error, AnthropicError, Chunk, ResponseEvent, MessageEvent)  # types of errors and events
EVENT = {  # of a stream of chat completions; the last event is [DONE], unless the stream broke off
    "type": "object",
    "required": ["data"],
    "properties": {
        "data": {
            "type": "string",
            "anyOf": [
                {"const": "[DONE]"},
                {"contentMediaType": "application/json", "contentSchema": DATA},
            ],
        }
    },
}
NAME = {"name": "model", "in": "path", "required": True, "schema": TEXT}
OPERATIONS: dict[tuple[str, str], Operation] = {
    ("post", "/v1/chat/completions"): Operation(
        "A reviewed answer. As events, where `stream` is true.",
        {"application/json": ChatCompletion, "text/event-stream": EVENT},
        (*POSTED, 403, 404, 504),
        ChatRequest,
    ),
    ("post", "/v1/responses"): Operation(
        "A reviewed answer, by OpenAI's Responses API. As events, where `stream` is true.",
        {"application/json": ResponseObject, "text/event-stream": _named("ResponseEvent")},
        (*POSTED, 403, 404, 504),
        ResponsesRequest,
    ),
    ("post", MESSAGES_PATH): Operation(
        "A reviewed answer, by Anthropic's Messages API. As events, where `stream` is true.",
        {"application/json": MessageReply, "text/event-stream": _named("MessageEvent")},
        (*POSTED, 403, 404, 504),
        MessagesRequest,
        (*BEARER, "header"),
        AnthropicError,
    ),
    ("post", PATH): Operation(
        "LiteLLM's generic guardrail: whether an answer of another model passes.",
        {"application/json": Action},
        POSTED,
        GuardrailRequest,
        (*BEARER, "header"),
    ),
    ("get", "/v1/models"): Operation("The model that is served.", {"application/json": ServedModels}, (401,)),
    ("get", "/v1/models/{model}"): Operation(
        "The model that is served.", {"application/json": ServedModel}, (401, 404), parameters=[NAME]
    ),
    ("get", "/ready"): Operation("Whether the engine runs.", {"application/json": Ready}, (401, 503)),
    ("get", "/metrics"): Operation("What is counted (Prometheus).", {"text/plain": TEXT}, (401, 403)),
    ("get", "/health"): Operation("Whether the server runs.", {"application/json": Health}, keys=()),
    ("get", "/openapi.json"): Operation("This description.", {"application/json": {"type": "object"}}, keys=()),
    **{
        ("get", path): Operation("A page to try the pair.", {media: TEXT}, keys=())
        for path, (_, media) in files_of().items()
    },
}


def description() -> dict[str, Any]:
    """The whole description, as JSON."""
    shapes = {id(shape): shape for op in OPERATIONS.values() for shape in (op.body, *op.answers.values())}
    asked = {id(op.body) for op in OPERATIONS.values()}
    named = [
        (key, "validation" if key in asked else "serialization", TypeAdapter(shape))
        for key, shape in [*shapes.items(), *((id(one), one) for one in ALSO)]
        if isinstance(shape, type)
    ]
    made, shared = TypeAdapter.json_schemas(named, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    refs = {key: schema for (key, _), schema in made.items()}
    schemas = shared["$defs"]
    for request, api in (
        ("ChatRequest", openai_requests),
        ("ResponsesRequest", responses_requests),
        ("MessagesRequest", messages_requests),
    ):
        schemas[request]["properties"] |= _unused(api.IGNORED, api.NEUTRAL)
    paths: dict[str, Any] = {}
    for (method, path), op in OPERATIONS.items():
        paths.setdefault(path, {})[method] = _operation(op, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "choreo serve",
            "version": choreo.__version__,
            "description": "A conversation agent and its feedback agent behind OpenAI's API and Anthropic's.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _unused(ignored: Collection[str], neutral: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Schemas of the fields that change nothing: some whatever they say, others with values that ask for nothing."""
    return {name: {} for name in sorted(ignored)} | {name: {"enum": [*vs, None]} for name, vs in neutral.items()}


def _operation(op: Operation, refs: dict[int, Any]) -> dict[str, Any]:
    answers = {media: {"schema": refs.get(id(shape), shape)} for media, shape in op.answers.items()}
    responses: dict[str, Any] = {"200": {"description": "done", "content": answers}}
    for status in sorted({*op.errors, 503}):  # every operation may answer 503: there may be too many connections
        error = {"application/json": {"schema": refs[id(op.error)]}} if status in op.errors else {}
        text = {"text/plain": {"schema": TEXT}} if status == 503 else {}
        responses[str(status)] = {"description": ERRORS[status], "content": {**error, **text}}
        if status in HEADERS:
            header, described = HEADERS[status]
            responses[str(status)]["headers"] = {header: {"description": described, "schema": TEXT}}
    body = {"required": True, "content": {"application/json": {"schema": refs[id(op.body)]}}} if op.body else None
    return {
        "summary": op.summary,
        "security": [{name: []} for name in op.keys],
        **({"parameters": op.parameters} if op.parameters else {}),
        **({"requestBody": body} if body else {}),
        "responses": responses,
    }
