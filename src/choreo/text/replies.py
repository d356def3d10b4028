"""JSON objects in a language model's reply, which may stand in fences or prose, and be written a little wrong.

The one reader for models that were never trained to write JSON alone: judges (`judges/rubric.py`) and reviewers that
are used as they are (`text/feedback.py`). It finds what is there; which object counts is theirs to say.
"""

from __future__ import annotations

import json
import re
from typing import Any

from choreo.text.thinking import behind

LONGEST = 2**15  # letters that are searched, from the end: no verdict takes more

# An object without objects or lists in it, written as Python or JavaScript would: single quotes, True, a last comma.
_STRING = r"""(?:"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+')"""
_VALUE = rf"(?:{_STRING}|true|false|null|True|False|None|-?\d+(?:\.\d+)?)"
_PAIR = re.compile(rf"\s*+({_STRING})\s*+:\s*+({_VALUE})\s*+(,|(?=\}}))", re.DOTALL)
_OPENS = re.compile(r"""\{\s*+["'}]""")
_CLOSES = re.compile(r"\s*+\}")
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}


def objects(reply: str) -> list[tuple[dict[str, Any], slice]]:
    """The JSON objects in `reply` that stand in no other object, behind any <think> block, and where they stand.

    An object that names a field twice says two things: it is {}.
    """
    begin = max(behind(reply), len(reply) - LONGEST)
    found: list[tuple[dict[str, Any], slice]] = []
    while opens := _OPENS.search(reply, begin):
        at, begin = opens.start(), opens.start() + 1
        try:
            said, end = _DECODER.raw_decode(reply, at)
        except RecursionError:  # braces without end: nothing behind them is looked for
            break
        except ValueError:
            said, end = _flat(reply, at)
        if said is not None:
            found.append((said, slice(at, end)))
            begin = end
    return found


def _flat(text: str, begin: int) -> tuple[dict[str, Any] | None, int]:
    """The flat object that begins at `begin`, and its end; None where there is none."""
    pairs: list[tuple[str, Any]] = []
    at = begin + 1
    while pair := _PAIR.match(text, at):
        try:
            pairs.append((_string(pair[1]), _value(pair[2])))
        except ValueError:
            return None, begin
        at = pair.end()
    closes = _CLOSES.match(text, at)
    return (_once(pairs), closes.end()) if closes and pairs else (None, begin)


def _value(told: str) -> Any:
    if told[0] in "\"'":
        return _string(told)
    return _WORDS[told] if told in _WORDS else float(told)


def _string(told: str) -> str:
    """A quoted string's text. Raises ValueError for an escape that is none."""
    inside = told[1:-1]
    if told[0] == "'":
        inside = re.sub(r"""\\(.)|(")""", _requoted, inside, flags=re.DOTALL)
    said: str = json.loads(f'"{inside}"', strict=False)
    return said


def _requoted(found: re.Match[str]) -> str:
    return r"\"" if found[2] else "'" if found[1] == "'" else found[0]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(pairs) if len({name for name, _ in pairs}) == len(pairs) else {}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse, strict=False)


def shortened(text: str, most: int = 120) -> str:
    """`text` in one line of at most `most` characters; "(nothing)" where there is none."""
    text = re.sub(r"\s+", " ", text).strip() or "(nothing)"
    return text if len(text) <= most else text[: most - 1] + "…"
