"""What a run's page shows by turns: rates on prompts with a history, apart from those without one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from choreo.report.page import PageSection, Table

COLUMNS = ("system", "turns", "prompts", "ASR", "ORR", "FTR harmful", "FTR benign", "FTR general", "format rate")


def turn_sections(summary: Mapping[str, Any]) -> list[PageSection]:
    """A table of every system's rates by the number of the user's turns; nothing where all prompts have as many."""
    rows = [
        [name, turns, found["prompts"], *map(_rate, _rates(found))]
        for name, one in summary.get("systems", {}).items()
        for turns, found in one.get("turns", {}).items()
    ]
    said = "The last answer is judged. One turn is a prompt without a history."
    return [PageSection("By turns of the user", said, Table(COLUMNS, rows))] if rows else []


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
