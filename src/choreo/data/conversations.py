"""Conversations in published forms, read into turns: lists of messages, and dialogues that were flattened to a text.

A list has {role, content} for each message (OpenAI, TRL, WildChat, LMSYS) or {from, value} (ShareGPT).
"""

from __future__ import annotations

import re
from typing import Any

from choreo.data.reading import Unusable
from choreo.errors import BadInput
from choreo.files.rows import Fields
from choreo.types import Turns

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
    "developer": "system",
}
KEYS = (("role", "content"), ("from", "value"))


def read_conversation(row: Fields, name: str, *, whole: bool = False) -> Turns:
    """The conversation in the field `name`, whose last turn is the user's. Roles take turns, the user first; one
    system message may stand before them, and is left out where it has no word, as a server does.

    whole: of data sets that hold conversations with their last answer. That answer is left off, and a conversation
        whose roles do not take turns is of no use (Unusable) rather than wrong.

    Raises BadInput, naming the message, for what is no such conversation.
    """
    turns = _turns(row, name)
    if whole and turns and turns[-1][1] == "assistant":
        turns.pop()
    return _in_order(row, name, turns, "user", Unusable if whole else None)


def read_history(row: Fields) -> Turns:
    """What stands before a row's prompt, in the field "earlier"; nothing where the row has no such field.

    It is as in `read_conversation`, but the last turn is the assistant's, or a system message stands alone. Raises
    BadInput.
    """
    if row.row.get("earlier") is None:
        return ()
    return _in_order(row, "earlier", _turns(row, "earlier"), "assistant")


def flatten(turns: Turns) -> str:
    """A conversation as one text, as MACPO's release writes it: USER: … ASSISTANT: … USER: …; one turn as it is."""
    if len(turns) == 1:
        return turns[0][1]
    return " ".join(f"{role.upper()}: {text}" for role, text in turns)


def unflatten(row: Fields, text: str, user: str, assistant: str, name: str) -> Turns:
    """A dialogue in one text that the marks `user` and `assistant` divide, in the field `name`.

    Raises BadInput where it does not begin with the user's.
    """
    marks = {user: "user", assistant: "assistant"}
    before, *parts = re.split(f"({'|'.join(map(re.escape, marks))})", text)
    if before.strip() or not parts or parts[0] != user:
        raise BadInput(f"{row.where}: {name}: expected a dialogue that begins with {user.strip()}")
    return tuple((marks[mark], content.strip()) for mark, content in zip(parts[::2], parts[1::2], strict=True))


_Placed = tuple[int, str, str]  # the place of a message, its role, its text


def _turns(row: Fields, name: str) -> list[_Placed]:
    messages = row.row.get(name)
    if not isinstance(messages, list):
        raise row.wrong(name, "a list of messages")
    turns = [_turn(row, f"{name}[{place}]", place, message) for place, message in enumerate(messages)]
    return [turn for turn in turns if turn[1] != "system" or turn[2].strip()]


def _turn(row: Fields, where: str, place: int, message: Any) -> _Placed:
    fields = Fields(row.file, row.line, message if isinstance(message, dict) else {})
    keys = next((keys for keys in KEYS if fields.row.keys() >= set(keys)), None)
    if keys is None:
        raise BadInput(f"{row.where}: {where}: expected a message {{role, content}} or {{from, value}}")
    role, text = (fields.row[key] for key in keys)
    if not isinstance(role, str) or role not in ROLES:
        raise BadInput(f"{row.where}: {where}.{keys[0]}: expected one of {', '.join(ROLES)}, got {role!r:.40}")
    if not isinstance(text, str):
        raise BadInput(f"{row.where}: {where}.{keys[1]}: expected text, got {type(text).__name__}")
    return place, ROLES[role], text


def _in_order(row: Fields, name: str, turns: list[_Placed], last: str, error: type[Unusable] | None = None) -> Turns:
    said = turns[1:] if turns and turns[0][1] == "system" else turns
    problem = ""
    for number, (place, role, _) in enumerate(said):
        if not problem and role != (due := ("user", "assistant")[number % 2]):
            problem = f"{name}[{place}]: expected the {due}'s, since the roles take turns, got the {role}'s"
    if not problem and (last == "user" or said) and (not said or said[-1][1] != last):
        got = f"the {said[-1][1]}'s" if said else "none"
        problem = f"{name}: expected that the last message is the {last}'s, got {got}"
    if problem and error:
        raise error("its roles do not take turns, or it has no question")
    if problem:
        raise BadInput(f"{row.where}: {problem}")
    return tuple((role, text) for _, role, text in turns)
