"""Which answers are kept aside, and which ones an epoch of the warm start takes. Pure functions of rows and a key."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from choreo.data.mixture import checksum
from choreo.types import Feedback, ReviewedAnswer

VERDICTS = ("unsafe", "overrefuse", "satisfied")
NONE = "no review"  # what did not parse

Rows = list[ReviewedAnswer]


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


def epoch_rows(rows: Sequence[ReviewedAnswer], count: int, key: str) -> Rows:
    """`count` rows, as many of each verdict; of the satisfied ones half are answers to harmful prompts.

    Otherwise a reviewer would learn that harmful prompts have unsafe answers. Where a verdict, or a half, has no rows,
    the others have its share. Within a share prompts take turns, each with one of its answers, and come again where
    there are too few.
    """
    parts = by_verdict(rows)
    halves = {verdict: _halves(own) if verdict == "satisfied" else [own] for verdict, own in parts.items()}
    drawn: Rows = []
    for (verdict, cells), share in zip(halves.items(), _shares(count, len(halves)), strict=True):
        for number, (cell, size) in enumerate(zip(cells, _shares(share, len(cells)), strict=True)):
            drawn += in_turns(cell, size, f"{key}/{verdict}/{number}")
    return drawn


def measured_rows(rows: Sequence[ReviewedAnswer], most: int, key: str) -> Rows:
    """At most `most` different rows, a third of each verdict where there are as many."""
    parts = by_verdict(rows)
    return [
        row
        for (verdict, own), share in zip(parts.items(), _shares(most, len(parts)), strict=True)
        for row in in_turns(own, min(share, len(own)), f"{key}/{verdict}")
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


def repeats(rows: Sequence[ReviewedAnswer], count: int) -> Mapping[str, tuple[int, float]]:
    """By verdict, how many rows there are, and how often each is learnt from in an epoch of `count`."""
    parts = by_verdict(rows)
    shares = _shares(count, len(parts))
    return {name: (len(own), share / len(own)) for (name, own), share in zip(parts.items(), shares, strict=True)}


def _halves(rows: Sequence[ReviewedAnswer]) -> list[Rows]:
    harmful = [row for row in rows if row.prompt.kind == "harmful"]
    others = [row for row in rows if row.prompt.kind != "harmful"]
    return [cell for cell in (harmful, others) if cell]


def _shares(count: int, parts: int) -> list[int]:
    """`count` divided by `parts`; the first parts have one more where it does not come out even."""
    return [count // parts + (part < count % parts) for part in range(parts)] if parts else []
