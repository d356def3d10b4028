"""Episodes on disk: one record per sampled trajectory, with its ids and the parts of its rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from choreo.files.messages import messages_of, turns_of
from choreo.types import Episode, Feedback, Prompt, TextTurn, Turn, Turns, Verdict


def record(
    episode: Episode[Any], rewards: Mapping[str, float], advantages: Mapping[str, Sequence[float]] | None = None
) -> dict[str, Any]:
    """The record of an episode, ready for JSON. rewards: by component, e.g. {"feedback/dir": 0.65}. advantages: of
    every id of the turns that were learnt from, by "agent/round"; they are kept to six digits, for people to look at.

    The meaning of the prompt is left out: its id and turns identify it, and the judge's verdicts are in `verdicts`.
    """
    prompt = episode.prompt
    learnt = {turn: [float(f"{value:.6g}") for value in values] for turn, values in (advantages or {}).items()}
    return {
        "prompt": {
            "id": prompt.id,
            "text": prompt.text,
            "kind": prompt.kind,
            "suite": prompt.suite,
            "language": prompt.language,
            "family": prompt.family,
            **({"earlier": messages_of(prompt.earlier)} if prompt.earlier else {}),
        },
        "sample": episode.sample,
        "answers": [_turn(turn) for turn in episode.answers],
        "reviews": [_turn(turn) for turn in episode.reviews],
        "feedback": [asdict(parsed) if parsed else None for parsed in episode.feedback],
        "verdicts": [verdict_record(verdict) for verdict in episode.verdicts],
        "rewards": dict(rewards),
        **({"advantages": learnt} if learnt else {}),
    }


def earlier_of(fields: Mapping[str, Any]) -> Turns:
    """The conversation before the prompt of a record."""
    return turns_of(fields["prompt"].get("earlier", ()))


def episode_of(fields: Mapping[str, Any], prompt: Prompt) -> Episode[Turn]:
    """The episode of a record, on `prompt`, of which a record has not all."""

    def turn(given: Mapping[str, Any]) -> Turn:
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
        }
        return Turn(**values)

    feedback = tuple(Feedback(**parsed) if parsed else None for parsed in fields["feedback"])
    verdicts = tuple(Verdict(**verdict) for verdict in fields["verdicts"])
    answers, reviews = (tuple(map(turn, fields[name])) for name in ("answers", "reviews"))
    return Episode(prompt, fields["sample"], answers, reviews, feedback, verdicts)


def verdict_record(verdict: Verdict) -> dict[str, Any]:
    """The record of a verdict, ready for JSON: all its fields, `garbled` only where it says something."""
    fields = asdict(verdict)
    if not verdict.garbled:
        del fields["garbled"]
    return fields


def _turn(turn: Turn | TextTurn) -> dict[str, Any]:
    fields = asdict(turn)
    for name in ("failure", "choices"):
        if not fields.get(name, True):
            del fields[name]
    if isinstance(turn, TextTurn):
        return fields
    # Nine digits hold a float32 exactly, in half the bytes that a float64 takes as text.
    return fields | {"logprobs": [float(f"{value:.9g}") for value in turn.logprobs]}
