"""One fixed date for every chat template, so that a run that is resumed tomorrow has today's contexts.

Some templates are given the date (`date_string`). Others call transformers' `strftime_now`, which reads the clock.
transformers takes no function of ours in its place, so a Jinja macro of that name is put before such a template.
"""

from __future__ import annotations

from datetime import datetime

TODAY = datetime(2024, 7, 26)
DATE = TODAY.strftime("%d %b %Y")

_CODES = [f"%{flag}{letter}" for letter in "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZf" for flag in ("", "-")]
# "%%" becomes NUL first and "%" last, so that no code is read into what stands behind it.
_VALUES = [("%%", "\0"), *((code, TODAY.strftime(code)) for code in _CODES), ("\0", "%")]
# The macro ends with a line end, which Jinja drops (trim_blocks): the template itself is read as before.
_MACRO = (
    "{% macro strftime_now(format) %}"
    "{%- if format is not string %}{{ raise_exception('strftime_now: expected a format in a text') }}{% endif -%}"
    "{%- set date = namespace(text=format) -%}"
    f"{{%- for code, value in {_VALUES!r} -%}}"
    "{%- set date.text = date.text | replace(code, value) -%}"
    "{%- endfor -%}{{- date.text -}}{% endmacro %}\n"
)


def with_fixed_date(template: str) -> str:
    """The template with TODAY at 00:00 in place of the clock. A template that does not read the clock is unchanged."""
    return _MACRO + template if "strftime_now" in template else template
