"""The JSON of the feedback agent's reviews. Pretraining, games and the server all write and parse it here.

A review of a trained agent is parsed strictly (`parse_feedback`), wherever it is measured. A model that was never
trained to write this JSON is read leniently (`read_feedback`): its form may be wrong, but its verdict must be clear.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from choreo.files import utf8
from choreo.text.replies import LONGEST, objects, refuse_constant
from choreo.text.thinking import answer_start
from choreo.types import Feedback, Verdict

FIELDS = {"reasoning": str, "unsafe": bool, "overrefuse": bool, "feedback": str}

# The same as a JSON schema, for servers with constrained decoding. Reasoning comes first, so that labels follow from
# it.
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string" if kind is str else "boolean"} for name, kind in FIELDS.items()},
    "required": list(FIELDS),
    "additionalProperties": False,
}


def render_feedback(feedback: Feedback) -> str:
    """The canonical JSON text, with the fields in the paper's order."""
    return json.dumps({name: getattr(feedback, name) for name in FIELDS}, ensure_ascii=False)


def parse_feedback(text: str) -> Feedback | None:
    """The feedback in `text`, if it is exactly one JSON object of the four fields with their types; else None.

    Strict on purpose (WaltzRL section 3): feedback that does not parse is not applied. Never raises.
    """
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or data.keys() != FIELDS.keys():
        return None
    if any(type(data[name]) is not kind for name, kind in FIELDS.items()):
        return None
    if utf8.broken(data):  # JSON can hold half of a surrogate pair, which is no text
        return None
    return Feedback(**data)


def read_feedback(text: str, material: Sequence[str], finished: bool = True) -> Feedback | None:
    """The feedback in a review by a model that was never trained to write this JSON, or None. Never raises.

    Allowed are fences, prose or a list around the object, single quotes, a last comma, further fields, and no
    reasoning. The verdict must be beyond doubt:
    - both labels are true or false, and a flagged answer has feedback on how to improve it;
    - the reply is finished, has no two objects that differ, and names no label outside its object;
    - the object does not stand in the material.

    material: the texts that were reviewed. JSON that a review quotes from them is not its verdict.
    """
    if (strict := parse_feedback(text)) is not None:
        return strict
    begin = answer_start(text)
    found = objects(text) if finished and len(text) - begin <= LONGEST else []
    if not found or any(other != found[0][0] for other, _ in found):
        return None
    ends = [slice(0, begin), *(place for _, place in found), slice(len(text), len(text))]
    around = " ".join(text[before.stop : after.start] for before, after in pairwise(ends))
    own = _letters(text[found[0][1]])
    if _NAMED.search(around) or any(own in _letters(part) for part in material):
        return None
    return _feedback(found[0][0])


def _letters(text: str) -> str:
    """The letters and digits of `text`, so that quotes, spaces and escapes do not matter in a comparison."""
    return re.sub(r"[\W_]+", "", text).lower()


def needed_leniency(text: str, read: Feedback | None) -> bool:
    """Whether `read` was found in `text` by `read_feedback` alone, since strict parsing fails."""
    return read is not None and parse_feedback(text) is None


# The name of a label. Outside the object that is read, or in another field of it, it may be another verdict.
_NAMED = re.compile(r"unsafe|over[\s_-]*refus(?:e|al)", re.IGNORECASE)


def _feedback(found: dict[str, Any]) -> Feedback | None:
    names = [name.strip().lower() for name in found]
    unsafe, overrefuse = found.get("unsafe"), found.get("overrefuse")
    if _NAMED.search(json.dumps({name: value for name, value in found.items() if name not in FIELDS})):
        return None
    if len(set(names)) < len(names) or not isinstance(unsafe, bool) or not isinstance(overrefuse, bool):
        return None
    reasoning, words = (found.get(name) if found.get(name) is not None else "" for name in ("reasoning", "feedback"))
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


def labels_right(feedback: Feedback | None, verdict: Verdict) -> bool | None:
    """Whether both labels equal the verdict on c_t, for label accuracy. Feedback that did not parse (None) is wrong.

    None where the verdict is undetermined, since no label is right or wrong then.
    """
    if verdict.undetermined:
        return None
    return feedback is not None and (feedback.unsafe, feedback.overrefuse) == (verdict.unsafe, verdict.overrefuse)
