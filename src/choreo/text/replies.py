"""Finds JSON objects in a language model's reply, also in fences or prose, and with small errors of form.

For models that were never trained to write JSON alone: judges (`judges/formats/rubric.py`) and untrained reviewers
(`text/feedback.py`). It finds all objects; the caller decides which one counts.
"""

from __future__ import annotations

import json
import re
from typing import Any

from choreo.text.thinking import answer_start

LONGEST = 2**15  # letters that are searched, counted from the end: no verdict is longer

# An object without objects or lists in it, as Python or JavaScript would write it: single quotes, True, a last comma.
_STRING = r"""(?:"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+')"""
_VALUE = rf"(?:{_STRING}|true|false|null|True|False|None|-?\d+(?:\.\d+)?)"
_PAIR = re.compile(rf"\s*+({_STRING})\s*+:\s*+({_VALUE})\s*+(,|(?=\}}))", re.DOTALL)
_OPENS = re.compile(r"""\{\s*+["'}]""")
_CLOSES = re.compile(r"\s*+\}")
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}


def objects(reply: str) -> list[tuple[dict[str, Any], slice]]:
    """The JSON objects in `reply` behind any <think> block, with their places. Objects inside others are not listed.

    An object that gives a field twice has no clear meaning, and is {}.
    """
    begin = max(answer_start(reply), len(reply) - LONGEST)
    found: list[tuple[dict[str, Any], slice]] = []
    while opens := _OPENS.search(reply, begin):
        at, begin = opens.start(), opens.start() + 1
        try:
            value, end = _DECODER.raw_decode(reply, at)
        except RecursionError:  # too many open braces: nothing behind them is searched
            break
        except ValueError:
            value, end = _flat(reply, at)
        if value is not None:
            found.append((value, slice(at, end)))
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


def _value(text: str) -> Any:
    if text[0] in "\"'":
        return _string(text)
    return _WORDS[text] if text in _WORDS else float(text)


def _string(quoted: str) -> str:
    """The text of a quoted string. Raises ValueError for an unknown escape."""
    inside = quoted[1:-1]
    if quoted[0] == "'":
        inside = re.sub(r"""\\(.)|(")""", _requoted, inside, flags=re.DOTALL)
    text: str = json.loads(f'"{inside}"', strict=False)
    return text


def _requoted(found: re.Match[str]) -> str:
    return r"\"" if found[2] else "'" if found[1] == "'" else found[0]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(pairs) if len({name for name, _ in pairs}) == len(pairs) else {}


def refuse_constant(constant: str) -> None:
    """For `parse_constant` of json: NaN and Infinity, which Python reads, are no JSON. Raises ValueError."""
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=refuse_constant, strict=False)


def shortened(text: str, most: int = 120) -> str:
    """`text` in one line of at most `most` characters; "(nothing)" where there is none."""
    text = re.sub(r"\s+", " ", text).strip() or "(nothing)"
    return text if len(text) <= most else text[: most - 1] + "…"
