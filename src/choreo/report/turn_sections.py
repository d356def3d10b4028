"""What a run's page shows by turns and by system message: rates on prompts with a history apart from those without
one, and on the same prompts without and with a system message of a caller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from choreo.report.page import PageSection, Table

RATES = ("prompts", "ASR", "ORR", "FTR harmful", "FTR benign", "FTR general", "format rate")

# By the field of a system's measures: the heading, what is said, and the head of the column with the groups' names.
GROUPS = {
    "turns": (
        "By turns of the user",
        "The last answer is judged. One turn is a prompt without a history.",
        "turns",
    ),
    "system_messages": (
        "Without and with a system message",
        "The same prompts, as they are and under a system message of a caller, put before them as in training.",
        "system message",
    ),
}


def turn_sections(summary: Mapping[str, Any]) -> list[PageSection]:
    """For each of GROUPS a table of every system's rates by group; nothing where there is one group alone."""
    found = []
    for field, (title, said, head) in GROUPS.items():
        rows = [
            [name, group, one["prompts"], *map(_rate, _rates(one))]
            for name, system in summary.get("systems", {}).items()
            for group, one in system.get(field, {}).items()
        ]
        found += [PageSection(title, said, Table(("system", head, *RATES), rows))] if rows else []
    return found


def _rates(found: Mapping[str, Any]) -> list[Any]:
    ftr = found.get("ftr", {})
    return [
        found["asr"],
        found["orr"],
        *(ftr.get(kind) for kind in ("harmful", "benign", "general")),
        found["format_rate"],
    ]


def _rate(estimate: Mapping[str, Any] | None) -> Any:
    """Where a judge was asked and decided nothing, how many it left open."""
    if estimate and estimate["value"] is None and estimate.get("undetermined"):
        return f"{estimate['undetermined']} open"
    return estimate
