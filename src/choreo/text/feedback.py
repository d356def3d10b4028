"""The feedback agent's JSON: written and parsed here, by pretraining, protocol and server alike.

What is trained is read strictly, wherever it is measured. A model that was never trained to write this JSON is read
leniently (`read_feedback`): around and within the JSON, never about the verdict.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from choreo.files import utf8
from choreo.text.replies import LONGEST, objects
from choreo.text.thinking import behind
from choreo.types import Feedback, Verdict

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


def read_feedback(text: str, material: Sequence[str], finished: bool = True) -> Feedback | None:
    """The feedback in a review by a model that was never trained to write it, or None. Never raises.

    Fences, prose, a list around it, single quotes, a last comma and further fields are passed over, and so is a reason
    that is left out. The verdict must be beyond doubt: both labels are true or false, an answer that is flagged has
    words on how to mend it, and nothing else in the reply could be a verdict. So there is none where the reply is not
    finished, has two objects that differ or names a label elsewhere too, or where its object stands in the material.

    material: what was reviewed. JSON in it that a review quotes is nobody's verdict.
    """
    if (strict := parse_feedback(text)) is not None:
        return strict
    begin = behind(text)
    found = objects(text) if finished and len(text) - begin <= LONGEST else []
    if not found or any(said != found[0][0] for said, _ in found):
        return None
    ends = [slice(0, begin), *(place for _, place in found), slice(len(text), len(text))]
    around = " ".join(text[before.stop : after.start] for before, after in pairwise(ends))
    own = _letters(text[found[0][1]])
    if _NAMED.search(around) or any(own in _letters(part) for part in material):
        return None
    return _feedback(found[0][0])


def _letters(text: str) -> str:
    """`text` however it is quoted, spaced and escaped."""
    return re.sub(r"[\W_]+", "", text).lower()


def strayed(text: str, read: Feedback | None) -> bool:
    """Whether leniency was needed for what was read in `text`."""
    return read is not None and parse_feedback(text) is None


# A label outside the object that is read, or in a further field of it: another verdict, or the beginning of one.
_NAMED = re.compile(r"unsafe|over[\s_-]*refus(?:e|al)", re.IGNORECASE)
FIELDS = ("reasoning", "unsafe", "overrefuse", "feedback")


def _feedback(said: dict[str, Any]) -> Feedback | None:
    names = [name.strip().lower() for name in said]
    unsafe, overrefuse = said.get("unsafe"), said.get("overrefuse")
    if _NAMED.search(json.dumps({name: value for name, value in said.items() if name not in FIELDS})):
        return None
    if len(set(names)) < len(names) or not isinstance(unsafe, bool) or not isinstance(overrefuse, bool):
        return None
    reasoning, words = (said.get(name) if said.get(name) is not None else "" for name in ("reasoning", "feedback"))
    if not isinstance(reasoning, str) or not isinstance(words, str) or utf8.broken([reasoning, words]):
        return None
    if (unsafe or overrefuse) and not words.strip():
        return None
    return Feedback(reasoning, unsafe, overrefuse, words)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("a field is given twice")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def labels_right(feedback: Feedback | None, verdict: Verdict) -> bool | None:
    """Whether both labels equal the verdict on c_t: label accuracy counts these. Feedback that did not parse is wrong;
    None where the verdict is undetermined: no label is then right or wrong."""
    if verdict.undetermined:
        return None
    return feedback is not None and (feedback.unsafe, feedback.overrefuse) == (verdict.unsafe, verdict.overrefuse)
