"""Games as a report shows them: text alone, the first of every suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from choreo.types import Episode

DIALOGUES = 24  # kept per suite and system, for the report to show


def dialogue_records(system: str, episodes: Sequence[Episode[Any]]) -> list[dict[str, Any]]:
    """The first `DIALOGUES` episodes of every suite as the report shows them."""
    kept: dict[str, list[Episode[Any]]] = {}
    for episode in episodes:
        kept.setdefault(episode.prompt.suite, []).append(episode)
    return [
        {
            "system": system,
            "prompt": episode.prompt.text,
            "kind": episode.prompt.kind,
            "suite": episode.prompt.suite,
            "language": episode.prompt.language,
            "answers": [turn.text for turn in episode.answers],
            "reviews": [
                {"text": turn.text, "parsed": asdict(parsed) if parsed else None}
                for turn, parsed in zip(episode.reviews, episode.feedback, strict=True)
            ],
            "verdicts": [asdict(verdict) for verdict in episode.verdicts],
        }
        for rows in kept.values()
        for episode in rows[:DIALOGUES]
    ]
