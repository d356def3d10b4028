"""The feedback agent's JSON: written and parsed here, by pretraining, protocol and server alike."""

from __future__ import annotations

import json

from choreo import utf8
from choreo.types import Feedback

_FIELDS = {"reasoning": str, "unsafe": bool, "overrefuse": bool, "feedback": str}

# The same for servers that hold a model to a schema, reasoning first, so that the labels follow from it.
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string" if kind is str else "boolean"} for name, kind in _FIELDS.items()},
    "required": list(_FIELDS),
    "additionalProperties": False,
}


def render_feedback(feedback: Feedback) -> str:
    """The canonical JSON text, fields in the paper's order."""
    return json.dumps({name: getattr(feedback, name) for name in _FIELDS}, ensure_ascii=False)


def parse_feedback(text: str) -> Feedback | None:
    """The feedback in `text`, or None: exactly the four fields, each of its type, nothing around them.

    Strict on purpose (WaltzRL section 3): whatever does not parse is not applied. Never raises.
    """
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or data.keys() != _FIELDS.keys():
        return None
    if any(type(data[name]) is not kind for name, kind in _FIELDS.items()):
        return None
    if utf8.broken(data):  # JSON can spell half a surrogate pair; what is not text is not applied
        return None
    return Feedback(**data)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("a field is given twice")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
