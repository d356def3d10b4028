"""The games that a report shows: the first ones of every suite, as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from choreo.files.messages import messages_of
from choreo.runs.episodes import verdict_record
from choreo.types import Episode

DIALOGUES = 24  # for each suite and system


def dialogue_records(system: str, episodes: Sequence[Episode[Any]]) -> list[dict[str, Any]]:
    """Records, ready for JSON, of the first `DIALOGUES` episodes of every suite."""
    kept: dict[str, list[Episode[Any]]] = {}
    for episode in episodes:
        kept.setdefault(episode.prompt.suite, []).append(episode)
    return [
        {
            "system": system,
            **({"earlier": messages_of(episode.prompt.earlier)} if episode.prompt.earlier else {}),
            "prompt": episode.prompt.text,
            "kind": episode.prompt.kind,
            "suite": episode.prompt.suite,
            "language": episode.prompt.language,
            "answers": [turn.text for turn in episode.answers],
            "reviews": [
                {"text": turn.text, "parsed": asdict(parsed) if parsed else None}
                for turn, parsed in zip(episode.reviews, episode.feedback, strict=True)
            ],
            "verdicts": [verdict_record(verdict) for verdict in episode.verdicts],
        }
        for rows in kept.values()
        for episode in rows[:DIALOGUES]
    ]
