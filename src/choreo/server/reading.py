"""What the readers of all APIs share. Pure.

A field that is not supported is refused by its name, unless it has a value that asks for nothing: many clients always
send it. A field that could not change what an answer says is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, Field, ValidationError

from choreo.files import utf8
from choreo.server.api_error import ApiError
from choreo.server.apis import ApiRequest, Strict
from choreo.server.structured import Speaker
from choreo.text.replies import refuse_constant

M = TypeVar("M", bound=BaseModel)

Nothing = Annotated[list[Any], Field(max_length=0)] | None


class TextPart(Strict):
    """cache_control and prompt_cache_breakpoint are ignored."""

    type: Literal["text"]
    text: str
    cache_control: Any = None
    prompt_cache_breakpoint: Any = None


class FunctionDefinition(Strict):
    """A tool, as both of OpenAI's APIs describe it."""

    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionName(Strict):
    name: str


class HasText(Protocol):
    """A part of a message."""

    @property
    def text(self) -> str: ...


def text_of_parts(content: str | Sequence[HasText]) -> str:
    """The text of a message, which may come in parts."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises ApiError for anything else."""
    data = json_value(body)
    if not isinstance(data, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return data


def json_value(body: bytes) -> Any:
    """The JSON value in `body`. Raises ApiError for what is not JSON, or holds half a surrogate pair."""
    try:
        data = json.loads(body, parse_constant=refuse_constant)
        wrong = utf8.broken(data)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not JSON in UTF-8", code="invalid_json") from None
    if wrong:
        message = f"the body is not JSON in UTF-8: {wrong[1]}"
        raise ApiError(400, message, param=".".join(wrong[0]) or None, code="invalid_json")
    return data


def speaker(role: Literal["system", "developer", "user", "assistant", "tool"]) -> Speaker:
    """The role of a message in a game: a developer's is that of a system message."""
    return "system" if role == "developer" else role


def checked(asked: ApiRequest) -> ApiRequest:
    """`asked`. Raises ApiError where the last message is neither the user's nor a tool's, where no user speaks, where a
    tool's message answers no call, or where an unchecked stream is no stream."""
    last = asked.messages[-1]
    if last.role not in ("user", "tool") or all(one.role != "user" for one in asked.messages):
        message = "a user must have spoken, and the last message must be a user's or a tool's"
        raise ApiError(400, message, param=last.place, code="invalid_value")
    called: set[str] = set()
    for one in asked.messages:
        if one.role == "tool" and one.answers not in called:
            message = f"{one.place}: answers no call of a tool before it"
            raise ApiError(400, message, param=one.place, code="invalid_value")
        called.update(call.id for call in one.calls)
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
        # The others are of other ways to read a field: less deep, or of a type that the caller did not mean.
        nearest = max(range(len(errors)), key=lambda i: (len(places[i]), not errors[i]["type"].endswith("_type")))
        param, first = ".".join(map(str, places[nearest])), errors[nearest]
        code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
        raise ApiError(400, f"{param}: {first['msg']}", param=param, code=code) from None


def _place(location: tuple[int | str, ...], data: Any, missing: bool) -> list[int | str]:
    """Where in `data` an error of pydantic is. Its locations also name the ways to read a field that has several."""
    found: list[int | str] = []
    for part in location:
        named = isinstance(data, dict) and part in data
        if named or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            found.append(part)
            data = data[part]
    return [*found, location[-1]] if missing else found


def _same(value: Any, other: Any) -> bool:
    """Equality of JSON values, where true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
