"""How long a run still takes, from the seconds of the steps that are recorded."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

RECENT = 5  # steps whose mean stands for "now"


def time_left(
    lines: Sequence[Mapping[str, Any]], steps: int, *, rounds: int = 0, measuring: float = 0.0, cheap: int = 0
) -> tuple[float | None, str]:
    """(seconds, "about" or "usually more than"); (None, "") where nothing is known, or no step is left.

    lines: of metrics.jsonl. steps: of the whole run. rounds: of MACPO, after its start (round 0). measuring: seconds
    that it takes to measure all agents, as after every round. cheap: how many steps at the beginning are a warm start.

    Rounds of MACPO are alike, so a round is expected to take as long as the one before it. Until the first round has
    ended, only the steps of the start are known. These are cheaper, so usually more time than that is left.
    """
    if not lines or (step := lines[-1]["step"]) >= steps:
        return None, ""
    if (now := lines[-1].get("round")) is None:
        each = mean([line.get("seconds") for line in lines[-RECENT:]])
        return (None, "") if each is None else ((steps - step) * each, "usually more than" if step < cheap else "about")
    spent: dict[int, float] = defaultdict(float)
    for line in lines:
        spent[line.get("round", 0)] += line.get("seconds") or 0.0
    ends = rounds - now + 1
    if now > 1:
        return max(0.0, ends * (spent[now - 1] + measuring) - spent[now]), "about"
    return (steps - step) * sum(spent.values()) / len(lines) + ends * measuring, "usually more than"


def mean(values: Sequence[Any]) -> float | None:
    """The mean of what are finite numbers; None where there are none."""
    known = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return math.fsum(known) / len(known) if known else None
