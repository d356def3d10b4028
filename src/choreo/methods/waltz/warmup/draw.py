"""Which answers are kept aside, and which ones an epoch of the warm start takes. Pure functions of rows and a key."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from choreo.data.mixture import checksum
from choreo.types import Feedback, ReviewedAnswer

VERDICTS = ("unsafe", "overrefuse", "satisfied")
NONE = "no review"  # what did not parse

Rows = list[ReviewedAnswer]
Mix = Mapping[Any, float]
"""The weight of unsafe, overrefuse, satisfied_harmful, satisfied_benign and satisfied_general answers in an epoch."""


def verdict_named(feedback: Feedback | None) -> str:
    """What a review says: one of VERDICTS, "both" where both labels are true, or NONE."""
    if feedback is None:
        return NONE
    if feedback.unsafe and feedback.overrefuse:
        return "both"
    return "unsafe" if feedback.unsafe else "overrefuse" if feedback.overrefuse else "satisfied"


def by_verdict(rows: Sequence[ReviewedAnswer]) -> dict[str, Rows]:
    """The rows of every verdict that there are any of, in the order of VERDICTS."""
    found = {verdict: [row for row in rows if verdict_named(row.feedback) == verdict] for verdict in VERDICTS}
    return {verdict: own for verdict, own in found.items() if own}


def set_apart(rows: Sequence[ReviewedAnswer], share: float) -> tuple[Rows, Rows]:
    """(rows to learn from, rows kept aside). A checksum of its group decides for a row, so that no prompt, and nothing
    that was asked in several ways, is on both sides, whatever else the files hold."""
    sides: tuple[Rows, Rows] = ([], [])
    for row in rows:
        sides[checksum(f"aside {row.group}") < share * 2**64].append(row)
    return sides


def epoch_rows(rows: Sequence[ReviewedAnswer], count: int, mix: Mix, key: str) -> Rows:
    """`count` rows, each verdict with its share of `mix`, and of the satisfied ones each kind of prompt with its own.

    Where a verdict has no rows, the others have its share; where a kind has none, the other kinds of that verdict.
    Within a share prompts take turns, each with one of its answers, and come again where there are too few.
    """
    drawn: Rows = []
    for own, share in _planned(rows, count, mix).values():
        cells = {name: [row for row in own if _cell(row) == name] for name in mix}
        weights = {name: mix[name] for name, cell in cells.items() if cell}
        for name, size in _shares(share, weights).items():
            drawn += in_turns(cells[name], size, f"{key}/{name}")
    return drawn


def measured_rows(rows: Sequence[ReviewedAnswer], most: int, key: str) -> Rows:
    """At most `most` different rows, a third of each verdict where there are as many."""
    parts = by_verdict(rows)
    shares = _shares(most, dict.fromkeys(parts, 1))
    return [
        row
        for verdict, own in parts.items()
        for row in in_turns(own, min(shares[verdict], len(own)), f"{key}/{verdict}")
    ]


def in_turns(rows: Sequence[ReviewedAnswer], count: int, key: str) -> Rows:
    """`count` rows of `rows`, which has some, by (key): groups in a shuffled order, each with its next row in turn. No
    row comes again before all have come."""
    rng = random.Random(key)
    groups: dict[str, Rows] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    for own in groups.values():
        rng.shuffle(own)
    order = list(groups)
    rng.shuffle(order)
    longest = max(map(len, groups.values()))
    once = [groups[name][turn] for turn in range(longest) for name in order if turn < len(groups[name])]
    return [once[i % len(once)] for i in range(count)]


def repeats(rows: Sequence[ReviewedAnswer], count: int, mix: Mix) -> Mapping[str, tuple[int, float]]:
    """By verdict, how many rows there are, and how often each is learnt from in an epoch of `count`, on average."""
    return {name: (len(own), share / len(own)) for name, (own, share) in _planned(rows, count, mix).items()}


def _planned(rows: Sequence[ReviewedAnswer], count: int, mix: Mix) -> dict[str, tuple[Rows, int]]:
    """By verdict, its rows that have a weight, and how many an epoch takes of them."""
    parts = by_verdict([row for row in rows if mix.get(_cell(row), 0) > 0])
    weights = {one: sum(weight for cell, weight in mix.items() if cell.split("_")[0] == one) for one in parts}
    return {verdict: (parts[verdict], share) for verdict, share in _shares(count, weights).items()}


def _cell(row: ReviewedAnswer) -> str:
    """The name that a row has in a mix."""
    verdict = verdict_named(row.feedback)
    return f"{verdict}_{row.prompt.kind}" if verdict == "satisfied" else verdict


def _shares(count: int, weights: Mapping[str, float]) -> dict[str, int]:
    """`count` divided by the weights, rounded so that the parts sum to it."""
    total, before, found = sum(weights.values()), 0.0, {}
    for name, weight in weights.items():
        found[name] = round(count * (before + weight) / total) - round(count * before / total)
        before += weight
    return found
