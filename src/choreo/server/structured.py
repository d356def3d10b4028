"""Tool calls and JSON answers: what a caller asks of an answer's form, an answer in that form, and the text of it that
a reviewer can read. Pure.

What is reviewed has to be all that leaves. So a reviewer reads every name and every value, without the escapes that
JSON writes, and an answer keeps its own form beside that text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from choreo.files import utf8
from choreo.server.openai_responses import CalledTool
from choreo.text.prompts import PARAGRAPH, split_system
from choreo.types import Prompt, Turn, Turns

Speaker = Literal["system", "user", "assistant", "tool"]
DEPTH = 64  # how deep the JSON of an answer may nest: what nests deeper than a parser can follow, nobody can review
ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')  # in a string of JSON
SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
LONGER = 32  # times as long as its JSON may be what is read of it: a long name stands before each of its values
NOT_CALLED = "The tool was not called: a reviewer asks for another answer."  # to a model, about a call of its draft


class ToolCall(NamedTuple):
    """arguments: the JSON of an object."""

    id: str
    name: str
    arguments: str


class ApiMessage(NamedTuple):
    """A message of a conversation.

    place: the field of the request that holds its role, for errors. calls: of the assistant. answers: the id of the
    call whose result a tool's message is.
    """

    role: Speaker
    text: str
    place: str
    calls: tuple[ToolCall, ...] = ()
    answers: str = ""

    @property
    def of_tools(self) -> bool:
        return self.role == "tool" or bool(self.calls)

    @property
    def as_openai(self) -> dict[str, Any]:
        """The message of OpenAI's chat completions."""
        if self.role == "tool":
            return {"role": "tool", "tool_call_id": self.answers, "content": self.text}
        return openai_message(self.role, self.text, self.calls)


@dataclass(frozen=True)
class Form:
    """What a caller asks of an answer's form; only another server's model can be asked for it.

    fields: of a request for OpenAI's chat completions: tools, tool_choice, parallel_tool_calls, response_format.
    turns: the conversation without the system messages that it begins with, where tools have been called in it.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    turns: tuple[ApiMessage, ...] = ()

    @property
    def has_tools(self) -> bool:
        return bool(self.fields.get("tools"))

    @property
    def is_json(self) -> bool:
        return "response_format" in self.fields

    @property
    def offered(self) -> frozenset[str]:
        """The names of the functions that an answer may call."""
        if self.fields.get("tool_choice") == "none":
            return frozenset()
        return frozenset(tool["function"]["name"] for tool in self.fields.get("tools", ()))

    def asked(self, again: bool) -> dict[str, Any]:
        """The fields of one request. again: of a revision. That one may answer in words, whatever tool was asked for,
        or a model that is told to call no such thing could not."""
        forced = again and self.fields.get("tool_choice", "none") != "none"
        return {**self.fields, **({"tool_choice": "auto"} if forced else {})}


@dataclass(frozen=True, slots=True)
class FormedTurn(Turn):
    """An answer that has a form of its own. Its `text` is what a reviewer reads.

    content: what the caller gets as text: the words beside tool calls, or JSON. refused: the model's server marks the
    content as a refusal, so it is no JSON.
    """

    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    refused: bool = False


def openai_message(role: str, text: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """A message of OpenAI's chat completions. Beside calls there need be no text."""
    if not calls:
        return {"role": role, "content": text}
    return {"role": role, "content": text or None, "tool_calls": [openai_call(call) for call in calls]}


def openai_call(call: ToolCall) -> CalledTool:
    """A call of a tool in the form of OpenAI's chat completions."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def called_tools(calls: object, offered: Collection[str] | None = None) -> tuple[ToolCall, ...]:
    """The `tool_calls` of a reply in OpenAI's form. Their ids are drawn here, since nobody would review those of the
    reply; they are of nine letters and digits, because some chat templates take no others.

    offered: the names of the functions that may be called; None where they are not known. Raises ValueError for
    anything but calls of such functions, whose arguments are a JSON object of no more than DEPTH levels.
    """
    if not isinstance(calls, list):
        raise ValueError("no list of tool calls")
    found = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise ValueError("a tool call without a function's name")
        if offered is not None and function["name"] not in offered:
            raise ValueError("a call of a tool that may not be called")
        arguments = function.get("arguments") or "{}"
        if not isinstance(arguments, str) or not _is_object(arguments):
            raise ValueError(f"a tool call whose arguments are no JSON object of at most {DEPTH} levels")
        found.append(ToolCall(secrets.token_hex(5)[:9], function["name"], arguments))
    return tuple(found)


class Pairs(tuple[tuple[str, Any], ...]):
    """A JSON object as it is written: a name may come twice, and a parser that keeps one would hide the other."""


class TooDeep(ValueError):
    """JSON of more than DEPTH levels."""


def readable_json(text: str) -> str:
    """The values of a JSON text, one a line, each behind its path: "steps 1: Take a bowl". What is no JSON, as where it
    was cut off or stands in a fence, is read as it is written, and once more without escapes if it has any.

    Raises TooDeep.
    """
    lines: list[str] = []
    room = LONGER * max(len(text), 64)
    try:
        for line in _lines(_parsed(text), ""):
            lines.append(line)
            room -= len(line)
            if room < 0:
                return _readable_anyhow(text)
    except TooDeep:
        raise
    except ValueError:
        return _readable_anyhow(text)
    return str(utf8.repaired("\n".join(lines)))


def _readable_anyhow(text: str) -> str:
    """`text`, and what a reader of JSON strings would make of it if that is something else. Both, because a backslash
    may be no escape, and would then hide the letter behind it."""
    plain = ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else SHORT.get(m[2], m[2]), text)
    return text if plain == text else f"{text}\n\n{utf8.repaired(plain)}"


def readable_answer(content: str, calls: Sequence[ToolCall], is_json: bool = False) -> str:
    """What a reviewer reads of an answer. is_json: its content was asked for as JSON. Raises TooDeep for such."""
    said = readable_json(content) if is_json else content
    return "\n\n".join(part for part in (said, *map(_readable_call, calls)) if part)


def readable_conversation(messages: Sequence[ApiMessage]) -> tuple[Turns, str]:
    """(the turns before the last of a user, what that user asked with the calls of tools since) of a conversation in
    which a user speaks. Each call, and what came of it, is part of the assistant's turn."""
    names = {call.id: call.name for message in messages for call in message.calls}
    asked = max(i for i, message in enumerate(messages) if message.role == "user")
    since = [_readable_step(one, names) for one in messages[asked + 1 :]]
    return _merged(messages[:asked], names), "\n\n".join(part for part in (messages[asked].text, *since) if part)


def as_trained(prompt: Prompt) -> Prompt:
    """The prompt with all system messages that its conversation begins with as one, which is what training has."""
    said, rest = split_system(prompt.earlier)
    return replace(prompt, earlier=tuple(rest)).under(PARAGRAPH.join(said)) if said else prompt


def _merged(messages: Sequence[ApiMessage], names: Mapping[str, str]) -> Turns:
    turns: list[tuple[str, str]] = []
    stepping = False  # the last turn called a tool, or holds the result of one
    for message in messages:
        role = "assistant" if message.role == "tool" else message.role
        text = _readable_step(message, names) if message.of_tools else message.text
        if stepping and role == "assistant":
            turns[-1] = role, "\n\n".join(part for part in (turns[-1][1], text) if part)
        else:
            turns.append((role, text))
        stepping = role == "assistant" and (stepping or message.of_tools)
    return tuple(turns)


def _readable_step(message: ApiMessage, names: Mapping[str, str]) -> str:
    if message.role == "tool":
        return f"[The tool {names.get(message.answers, '')} gave:]\n{message.text}"
    return "\n\n".join(part for part in (message.text, *map(_readable_call, message.calls)) if part)


def _readable_call(call: ToolCall) -> str:
    try:
        values = "" if call.arguments.strip() in ("", "{}") else readable_json(call.arguments)
    except TooDeep:  # of a caller's conversation: no model is asked to call it
        values = _readable_anyhow(call.arguments)
    return f"[The assistant calls the tool {call.name}{' with:]' if values else '.]'}" + (
        f"\n{values}" if values else ""
    )


def _is_object(text: str) -> bool:
    """Whether `text` is a JSON object that can be read, and written again as JSON: with numbers that there are."""
    try:
        json.dumps(json.loads(text), allow_nan=False)
        return isinstance(_parsed(text), Pairs)
    except (ValueError, RecursionError):
        return False


def _parsed(text: str) -> Any:
    """A JSON value: objects as `Pairs`, numbers as they are written. Raises TooDeep, and ValueError for what is no
    JSON."""
    try:
        value = json.loads(text, object_pairs_hook=Pairs, parse_int=str, parse_float=str, parse_constant=str)
    except RecursionError:
        raise TooDeep from None
    level = [value]
    for _ in range(DEPTH + 1):
        level = [one for outer in level if isinstance(outer, Pairs | list) for one in _items(outer)]
    if level:
        raise TooDeep
    return value


def _items(value: Pairs | list[Any]) -> list[Any]:
    return [item for _, item in value] if isinstance(value, Pairs) else value


def _lines(value: Any, path: str) -> Iterator[str]:
    begin = f"{path}: " if path else ""
    if isinstance(value, Pairs | list) and value:
        inner = value if isinstance(value, Pairs) else ((str(i), item) for i, item in enumerate(value, 1))
        for name, item in inner:
            yield from _lines(item, f"{path} {name}".strip())
    elif isinstance(value, Pairs):
        yield f"{begin}nothing"
    else:
        yield begin + (value if isinstance(value, str) else json.dumps(value))
