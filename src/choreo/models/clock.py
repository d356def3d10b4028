"""The one day that chat templates are told, whichever day it is: a run that is resumed tomorrow has today's contexts.

Some templates are given the date (`date_string`). Others call transformers' `strftime_now`, which asks the clock.
transformers takes no function of ours in its place, so a macro of that name is set before such a template.
"""

from __future__ import annotations

from datetime import datetime

TODAY = datetime(2024, 7, 26)
DATE = TODAY.strftime("%d %b %Y")

_CODES = [f"%{flag}{letter}" for letter in "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZf" for flag in ("", "-")]
_SAID = [("%%", "\0"), *((code, TODAY.strftime(code)) for code in _CODES), ("\0", "%")]
# The line ends behind the macro, and Jinja drops that end (trim_blocks): what follows is read as it was.
_MACRO = (
    "{% macro strftime_now(format) %}"
    "{%- if format is not string %}{{ raise_exception('strftime_now: expected a format in a text') }}{% endif -%}"
    "{%- set told = namespace(text=format) -%}"
    f"{{%- for code, said in {_SAID!r} -%}}"
    "{%- set told.text = told.text | replace(code, said) -%}"
    "{%- endfor -%}{{- told.text -}}{% endmacro %}\n"
)


def dated(template: str) -> str:
    """The template, told of TODAY at 00:00 where it asks the clock; as it is where it does not."""
    return _MACRO + template if "strftime_now" in template else template
