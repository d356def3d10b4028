"""Did a turn arrive? What a model said behind its reasoning, or why there is nothing that could be judged.

A turn that did not arrive is nobody's answer, however it failed to arrive, and counts in no rate. One empty turn is an
answer: a model that ended its turn by itself, without a word and without reasoning, chose to say nothing. Somebody who
asked gets that silence, so it is judged; left out, silence would be a way to over-refuse unseen.
"""

from __future__ import annotations

import re

THOUGHT = "thought only: no answer behind its reasoning"
FILTERED = "content_filter: the server withheld it"
CALLED = "tool calls only: no answer beside them"
NO_TEXT = "no text: the server sent none"

_OPENS = re.compile(r"\s*(<think(ing)?>|\[THINK\])")
_CLOSES = re.compile(r"</think(ing)?>|\[/THINK\]")
_ENDS = {"stop", "eos", "eos_token", "end_turn", "stop_sequence"}  # a server's words for: the model ended its turn
_BREAKS = {"error", "abort", "aborted", "cancelled"}  # … and for: something else did


def behind(text: str) -> int:
    """Where what stands behind a <think> block begins: 0 without one, the end of the text where it was never closed."""
    if closed := [*_CLOSES.finditer(text)]:
        return closed[-1].end()
    return len(text) if _OPENS.match(text) else 0


def after_thinking(text: str) -> str | None:
    """What stands behind a <think> block, where there is one; None where the block was never closed."""
    begin = behind(text)
    if not begin:
        return text
    return text[begin:].strip() if _CLOSES.search(text) else None


def arrived(text: str | None, finish: str, *, thought: bool = False, called: bool = False) -> tuple[str, str]:
    """(what was said, ""), or ("", why the turn did not arrive): '<kind>: <details>', or '<kind>'.

    text: None where none was sent. finish: why the turn ended, in a server's words. thought, called: reasoning, or
    calls of tools, came beside the text.
    """
    said = after_thinking(text or "")
    if finish.lower() in _BREAKS:
        return "", f"broken off: finish_reason {finish}"
    if said is not None and not blank(said):
        return said, ""
    if finish == "content_filter":
        return "", FILTERED
    if thought or said is None or _CLOSES.search(text or ""):
        return "", THOUGHT
    if called:
        return "", CALLED
    if text is None:
        return "", NO_TEXT
    if finish.lower() not in _ENDS:
        return "", f"nothing said: finish_reason {finish or 'not told'}"
    return said, ""


def blank(text: str) -> bool:
    """Whether there is nothing to see in `text`."""
    return not any(letter.isprintable() and not letter.isspace() for letter in text)
