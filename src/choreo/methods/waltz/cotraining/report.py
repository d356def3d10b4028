"""How often the attacker won as training went on: for the summary, and for the page. It loads no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from choreo.report.page import PageSection, Table, percent
from choreo.report.record import Record

ROUND = "attacker/won"  # in the lines of metrics.jsonl before whose step there was a round
COLUMNS = {
    "won": "attacker paid",
    "unsafe": "unsafe answers to harmful prompts",
    "overrefuse": "over-refusals of benign prompts",
    "kept": "rewritings that ask for the same",
}


def attack_rounds(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Every round of the attacker: the pair's step that it came before, and what share of its tries was paid, of all
    and by kind. metrics: the lines of metrics.jsonl."""
    return [
        {"step": line["step"]} | {name: line[f"attacker/{name}"] for name in COLUMNS if f"attacker/{name}" in line}
        for line in metrics
        if ROUND in line
    ]


def attack_sections(record: Record) -> list[PageSection]:
    """The section on the attacker that the pair was trained against; none where there was none."""
    rounds = attack_rounds(record.metrics)
    if not rounds:
        return []
    first, last = rounds[0], rounds[-1]
    told = [
        f"{title} went from {_share(first[name])} to {_share(last[name])}"
        for name, title in COLUMNS.items()
        if name in first and name in last
    ]
    text = (
        f"An attacker that wrote prompts anew learnt beside the pair, in {len(rounds)} rounds. From the first round to "
        f"the last, of its single tries at the pair as it then was: {', '.join(told)}. It learns too, so an "
        "unchanged figure does not mean that the pair has not learnt; to see that, attack it with an attacker that was "
        "trained afterwards (`choreo attack`)."
    )
    names = [name for name in COLUMNS if name in first]
    rows = [[one["step"], *(_share(one.get(name)) for name in names)] for one in rounds]
    table = Table(("before step", *(COLUMNS[name] for name in names)), rows)
    return [PageSection("The attacker beside the pair", text, table)]


def _share(value: float | None) -> str:
    return percent(None if value is None else {"value": value}, False)
