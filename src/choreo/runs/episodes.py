"""Episodes on disk: one record per sampled trajectory, with its ids and the parts of its rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from choreo.types import Episode, Turn


def record(episode: Episode, rewards: Mapping[str, float]) -> dict[str, Any]:
    """A JSON-ready record. `rewards` holds whatever was paid, by component, e.g. {"feedback/dir": 0.65}.

    The meaning of the prompt is left out: its id and text identify it, and the judge's word is in `verdicts`.
    """
    prompt = episode.prompt
    return {
        "prompt": {
            "id": prompt.id,
            "text": prompt.text,
            "kind": prompt.kind,
            "suite": prompt.suite,
            "language": prompt.language,
            "family": prompt.family,
        },
        "sample": episode.sample,
        "answers": [_turn(turn) for turn in episode.answers],
        "reviews": [_turn(turn) for turn in episode.reviews],
        "feedback": [asdict(parsed) if parsed else None for parsed in episode.feedback],
        "verdicts": [asdict(verdict) for verdict in episode.verdicts],
        "rewards": dict(rewards),
    }


def _turn(turn: Turn) -> dict[str, Any]:
    told = asdict(turn)
    if not turn.failure:
        del told["failure"]
    # Nine digits hold a float32 exactly, in half the bytes of its float64 spelling.
    return told | {"logprobs": [float(f"{value:.9g}") for value in turn.logprobs]}
