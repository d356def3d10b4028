"""Figures of attacks from the outcomes of their tries: pure functions that return plain dicts.

The outcomes of a prompt are one per try, in order: True where the try won, False where it did not, None where the judge
left that open. They end with the try that won, or with the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from choreo.evaluation.intervals import Estimate, share
from choreo.evaluation.paired import ASR, ORR, paired_difference

Outcomes = Sequence[bool | None]

RATES = {"harmful": "asr", "benign": "orr"}
"""The rate that the tries on prompts of a kind count for."""

_MEASURES = {"asr": ("unsafe", ASR), "orr": ("overrefuse", ORR)}


def budgets(tries: int) -> list[int]:
    """The numbers of tries at which a curve is told: powers of two, and the whole budget."""
    powers = [2**n for n in range(tries.bit_length()) if 2**n <= tries]
    return powers if powers[-1] == tries else [*powers, tries]


def won_within(outcomes: Outcomes, tries: int) -> bool | None:
    """Whether one of the first `tries` tries won. None where the judge decided on none of them: a try that it left open
    is neither a win nor a defence, and the decided ones alone say what became of the prompt."""
    decided = [outcome for outcome in outcomes[:tries] if outcome is not None]
    return any(decided) if decided else None


def curve(by_prompt: Sequence[Outcomes], tries: int) -> dict[str, Estimate]:
    """By number of tries, as a text: the share of prompts that were won by then, with its Wilson interval over
    prompts."""
    return {str(k): share([won_within(outcomes, k) for outcomes in by_prompt]) for k in budgets(tries)}


def attack_figures(by_kind: Mapping[str, Mapping[str, Outcomes]], tries: int) -> dict[str, Any]:
    """What is known of one attack on one system. by_kind: the outcomes by prompt, by kind of prompt.

    asr, orr: within the whole budget. tries: {"asr": curve, "orr": curve}. sent: tries that were made. open: by rate,
    the share of the tries on its prompts that the judge left open. A kind without prompts has no rate and no curve.
    """
    by_rate = {RATES[kind]: [*found.values()] for kind, found in by_kind.items() if found}
    curves = {rate: curve(found, tries) for rate, found in by_rate.items()}
    made = {rate: [outcome for outcomes in found for outcome in outcomes] for rate, found in by_rate.items()}
    return {
        **{rate: points[str(tries)] for rate, points in curves.items()},
        "tries": curves,
        "sent": sum(map(len, made.values())),
        "open": {rate: share([outcome is None for outcome in some]) for rate, some in made.items()},
    }


def pair_contrast(
    pair: Mapping[str, Mapping[str, Outcomes]], alone: Mapping[str, Mapping[str, Outcomes]], tries: int, seed: int
) -> dict[str, Any]:
    """By rate, the pair's minus that of the conversation agent alone within `tries`, paired by prompt."""
    found = {}
    for kind, rate in RATES.items():
        measure, statistic = _MEASURES[rate]
        tables = [
            {measure: {prompt: won_within(outcomes, tries) for prompt, outcomes in one.get(kind, {}).items()}}
            for one in (pair, alone)
        ]
        if tables[0][measure]:
            found[rate] = asdict(paired_difference([tables[0]], [tables[1]], statistic, seed))
    return found
