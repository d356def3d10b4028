"""One family of contrasts: systems paired by prompt, corrected together, with what the design could have told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from choreo.evaluation.metrics import HEADLINE
from choreo.evaluation.paired import (
    ASR,
    DRAWS,
    F1,
    ORR,
    PairedDifference,
    Statistic,
    Tables,
    holm,
    paired_difference,
)
from choreo.report.page import PageSection, Table
from choreo.studies.shared.compare import points

ALPHA = 0.05
STATISTICS = {"ASR": ASR, "ORR": ORR, "F1": F1}
OF_KIND = {"unsafe": "harmful", "overrefuse": "benign"}  # what is wrong with an answer, and of which prompts it is told


def tables(games: Iterable[Mapping[str, Any]]) -> Tables:
    """The outcomes of the last answers of games, as `durable.read_lines` gives them: by measure, then by prompt.

    The prompts are those of ASR and ORR, see `metrics.HEADLINE`. Prompts of one id and one text are the same prompt.
    """
    of_kind: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in OF_KIND.values()}
    for game in games:
        of_kind.get(game["prompt"]["kind"], []).append(game)
    return {label: _outcomes(_headline(of_kind[kind], kind), label) for label, kind in OF_KIND.items()}


def _headline(games: list[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    """The games of the headline suite, or all where there is none of it."""
    return [game for game in games if game["prompt"]["suite"] == HEADLINE[kind]] or games


def _outcomes(games: Sequence[Mapping[str, Any]], label: str) -> dict[str, bool | None]:
    return {f"{game['prompt']['id']} {game['prompt']['text']}": game["verdicts"][-1][label] for game in games}


def paired(
    heading: str,
    pairs: Sequence[tuple[str, str]],
    outcomes: Mapping[str, Sequence[Tables]],
    statistics: Mapping[str, Statistic] = STATISTICS,
) -> PageSection:
    """A section with a − b for every pair (a, b) and every statistic. outcomes: by system, then one table per seed."""
    found = {
        (pair, name): paired_difference(outcomes[pair[0]], outcomes[pair[1]], statistic)
        for pair in pairs
        for name, statistic in statistics.items()
    }
    adjusted = holm([math.nan if each.p is None else each.p for each in found.values()])
    contrasts = sum(not math.isnan(p) for p in adjusted)
    floor = contrasts * 2 / (DRAWS + 1)  # of the smallest p that the bootstrap can give
    rows: list[list[Any]] = []
    told: dict[tuple[str, str], list[str]] = {pair: [] for pair in pairs}
    for ((pair, name), each), p in zip(found.items(), adjusted, strict=True):
        rows.append([" minus ".join(pair), name, points(asdict(each)), _p(p, floor), _told(each), each.n])
        if each.value is not None and p < ALPHA:
            told[pair].append(f"{name} is {'lower' if each.value < 0 else 'higher'}")
    lines = [f"{a} against {b}: {' and '.join(told[a, b]) or 'no difference can be told'}." for a, b in pairs]
    seeds = max((each.seeds for each in found.values()), default=0)
    lines.append(
        f"Paired by prompt, over {seeds} seed{'s' * (seeds != 1)}; p is adjusted for all {contrasts} contrasts of the "
        "table (Holm). 'Could be told': the smallest difference that this design tells from none in four of five "
        "repetitions, before the adjustment."
    )
    if seeds == 1:
        lines.append("With one seed the test is over prompts alone; what another training would do is not in it.")
    columns = ("", "measure", "difference", "p", "could be told", "prompts")
    return PageSection(heading, " ".join(lines), Table(columns, rows))


def _p(p: float, floor: float) -> str:
    """floor: the smallest that the bootstrap can tell. What is there may be smaller still."""
    if math.isnan(p) or p < 0.001:
        return "–" if math.isnan(p) else "< .001"
    if math.isclose(p, floor):
        return "≤ " + f"{math.ceil(1000 * floor) / 1000:.3f}".lstrip("0")
    return f"{p:.3f}".lstrip("0")


def _told(each: PairedDifference) -> str:
    return "–" if each.told is None else f"{100 * each.told:.1f} points"
