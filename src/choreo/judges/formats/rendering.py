"""What the published formats share: texts laid into a template, and labels in words."""

from __future__ import annotations

import re


def fill_template(template: str, **texts: str) -> str:
    """`template` with each {name} replaced in one pass, so that braces inside a text mean nothing."""
    return re.sub(r"\{(\w+)\}", lambda found: texts.get(found[1], found[0]), template)


def plain(text: str) -> str:
    """`text` with a space inside whatever could be read as a special token of these templates."""
    text = re.sub(r"<(?=\|)", "< ", text)
    return re.sub(r"(\[/?)(?=INST\])|(</?)(?=s>)", lambda found: found[0] + " ", text)


def word(value: bool | None) -> str:
    """A label in words."""
    return "unknown" if value is None else "yes" if value else "no"
