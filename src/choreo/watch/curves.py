"""The curves of runs: which figures there are, and the values of each run by step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from choreo.methods.waltz.report import CURVES
from choreo.report.judge_sections import JUDGES
from choreo.report.run_pages import UNDRAWN

BY_JUDGES = {"satisfactory": "Satisfactory answers", "asr": "ASR", "orr": "ORR", "open": "Left open"}
GROWTH = ("Growth of what satisfies the training judge alone", "%", {"gap/growth": "growth", "gap/mean": "gap"})
KEPT = {"gap/prompts", "gap/total", "gap/squares", "gap/growth_low", "gap/growth_high", "epoch", "lr"}


def curve_figures(fields: Iterable[str]) -> list[dict[str, Any]]:
    """The figures that can be drawn of `fields`: {title, unit, fields: {field: name}, more}. First those that have a
    title of their own; then, with `more` set, one for every name before a "/"."""
    there = {*fields}
    named = [
        *CURVES,
        *(
            (f"{title}, by both judges", "%", {f"{field}/{judge}": f"{judge} judge" for judge in JUDGES})
            for field, title in BY_JUDGES.items()
        ),
        GROWTH,
    ]
    found: list[dict[str, Any]] = []
    for title, unit, names in named:
        if kept := {field: name for field, name in names.items() if field in there}:
            found.append({"title": title, "unit": unit, "fields": kept, "more": False})
    rest = there - {field for one in found for field in one["fields"]} - UNDRAWN - KEPT
    groups: dict[str, dict[str, str]] = {}
    for field in sorted(rest):
        title, _, of = field.partition("/")
        groups.setdefault(title, {})[field] = of or field.replace("_", " ")
    whole = not found  # of a method whose figures have no titles here, all are shown
    found += [
        {"title": title.replace("_", " "), "unit": "", "fields": names, "more": not whole}
        for title, names in groups.items()
    ]
    return found


def values_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Every field that holds a finite number anywhere, as its value in each line, or None. In lines that name an agent,
    a field has its name behind it: the losses of several agents are not one curve."""
    lines = [{_named(name, line): value for name, value in line.items()} for line in lines]
    fields = dict.fromkeys(name for line in lines for name, value in line.items() if _is_number(value))
    return {field: [_short(line[field]) if _is_number(line.get(field)) else None for line in lines] for field in fields}


def _named(field: str, line: Mapping[str, Any]) -> str:
    agent = line.get("agent")
    alone = not agent or "/" in field or field in UNDRAWN | KEPT
    return field if alone else f"{field}/{agent}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")
