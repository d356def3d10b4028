"""Turns as they stand in files: messages in the published form, {role, content}."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from choreo.types import Turns

Message = dict[str, str]


def messages_of(turns: Turns) -> list[Message]:
    """`turns` as messages."""
    return [{"role": role, "content": text} for role, text in turns]


def turns_of(messages: Iterable[Mapping[str, str]]) -> Turns:
    """The turns of messages that choreo has written."""
    return tuple((message["role"], message["content"]) for message in messages)
