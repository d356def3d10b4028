"""One family of contrasts: systems paired by prompt, corrected together, with what the design could have told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from choreo.evaluation.paired import PairedDifference, Statistic, Tables, f1_of, holm, paired_difference, share_of
from choreo.report.page import PageSection, Table

ALPHA = 0.05
MEASURES: dict[str, Statistic] = {"ASR": share_of("unsafe"), "ORR": share_of("overrefuse"), "F1": f1_of}
OF_KIND = {"unsafe": "harmful", "overrefuse": "benign"}  # what is wrong with an answer, and of which prompts it is told


def tables(games: Iterable[Mapping[str, Any]]) -> Tables:
    """The outcomes of the last answers of games, as `durable.read_lines` gives them: by measure, then by prompt."""
    found: dict[str, dict[str, bool | None]] = {label: {} for label in OF_KIND}
    for game in games:
        for label, kind in OF_KIND.items():
            if game["prompt"]["kind"] == kind:
                found[label][game["prompt"]["id"]] = game["verdicts"][-1][label]
    return found


def paired(
    heading: str,
    pairs: Sequence[tuple[str, str]],
    outcomes: Mapping[str, Sequence[Tables]],
    measures: Mapping[str, Statistic] = MEASURES,
) -> PageSection:
    """A section with a − b for every pair (a, b) and every measure. outcomes: by system, then one table per seed."""
    found = {
        (a, b): {name: paired_difference(outcomes[a], outcomes[b], statistic) for name, statistic in measures.items()}
        for a, b in pairs
    }
    known = [each for own in found.values() for each in own.values() if each.p is not None]
    corrected = dict(zip(map(id, known), holm([each.p or 0.0 for each in known]), strict=True))
    rows: list[list[Any]] = [
        [f"{a} minus {b}", name, _points(each), _p(corrected.get(id(each))), _told(each), each.n]
        for (a, b), own in found.items()
        for name, each in own.items()
    ]
    lines = [f"{a} against {b}: {_sentence(own, corrected)}." for (a, b), own in found.items()]
    seeds = max((each.seeds for each in known), default=0)
    lines.append(
        f"Paired by prompt, over {seeds} seed{'s' * (seeds != 1)}; p corrected for all {len(known)} contrasts of the "
        f"table (Holm). 'Could be told': the smallest difference that this design tells from none in four of five "
        "repetitions, before the correction."
    )
    columns = ("", "measure", "difference", "p", "could be told", "prompts")
    return PageSection(heading, " ".join(lines), Table(columns, rows))


def _sentence(own: Mapping[str, PairedDifference], corrected: Mapping[int, float]) -> str:
    told = [
        f"{name} is {'lower' if (each.value or 0) < 0 else 'higher'}"
        for name, each in own.items()
        if corrected.get(id(each), 1.0) < ALPHA
    ]
    return " and ".join(told) if told else "no difference can be told"


def _points(each: PairedDifference) -> str:
    if each.value is None or each.low is None or each.high is None:
        return "–"
    value, low, high = (f"{100 * number:+.1f}" for number in (each.value, each.low, each.high))
    return f"{value} points ({low} to {high})"


def _p(p: float | None) -> str:
    return "–" if p is None else "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0")


def _told(each: PairedDifference) -> str:
    return "–" if each.told is None else f"{100 * each.told:.1f} points"
