"""The text of a turn behind its reasoning, or the reason why a turn failed and has none.

A failed turn is not an answer, and counts in no rate. One sort of empty turn is an answer: the model ended its turn by
itself, without text and without reasoning, so it chose to say nothing. The user gets that silence, so it is judged. If
it were left out, silence would be a way to over-refuse without being counted.
"""

from __future__ import annotations

import re

THOUGHT = "thought only: no answer behind its reasoning"
FILTERED = "content_filter: the server withheld it"
CALLED = "tool calls only: no answer beside them"
NO_TEXT = "no text: the server sent none"

_MARKS = ("<think>", "<thinking>", "[THINK]")
_OPENS = re.compile(r"\s*(<think(ing)?>|\[THINK\])")
_CLOSES = re.compile(r"</think(ing)?>|\[/THINK\]")
_ENDS = {"stop", "eos", "eos_token", "end_turn", "stop_sequence"}  # finish reasons: the model ended its turn
_BREAKS = {"error", "abort", "aborted", "cancelled"}  # finish reasons: something else ended it


def answer_start(text: str) -> int:
    """Where the text behind a <think> block begins: 0 without a block, the end of `text` where it was never closed."""
    if closed := [*_CLOSES.finditer(text)]:
        return closed[-1].end()
    return len(text) if _OPENS.match(text) else 0


def after_thinking(text: str) -> str | None:
    """The text behind a <think> block, or all of it without one; None where the block was never closed."""
    begin = answer_start(text)
    if not begin:
        return text
    return text[begin:].strip() if _CLOSES.search(text) else None


def begun_answer(text: str) -> str:
    """What of an unfinished text is the answer, as far as can be told: nothing while it may yet be a <think> block."""
    start = text.lstrip()
    if any(mark.startswith(start) for mark in _MARKS):
        return ""
    return after_thinking(text) or ""


def usable_text(text: str | None, finish: str, *, thought: bool = False, called: bool = False) -> tuple[str, str]:
    """(text behind the reasoning, ""), or ("", why the turn failed): '<kind>: <details>', or '<kind>'.

    text: None where the server sent none. finish: the server's finish reason. thought, called: the server sent
    reasoning, or tool calls, beside the text.
    """
    answer = after_thinking(text or "")
    if finish.lower() in _BREAKS:
        return "", f"broken off: finish_reason {finish}"
    if answer is not None and not blank(answer):
        return answer, ""
    if finish == "content_filter":
        return "", FILTERED
    if thought or answer is None or _CLOSES.search(text or ""):
        return "", THOUGHT
    if called:
        return "", CALLED
    if text is None:
        return "", NO_TEXT
    if finish.lower() not in _ENDS:
        return "", f"nothing said: finish_reason {finish or 'not given'}"
    return answer, ""


def ended_badly(finish: str) -> bool:
    """Whether a finish reason says that something other than the model ended the turn, or withheld it."""
    return finish.lower() in _BREAKS or finish == "content_filter"


def blank(text: str) -> bool:
    """Whether `text` has no visible character."""
    return not any(letter.isprintable() and not letter.isspace() for letter in text)
