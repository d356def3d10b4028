"""What the MACPO studies share: rounds of several seeds to estimates, lines and verdicts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from choreo.evaluate import plots
from choreo.evaluate.intervals import Estimate, estimate, over_seeds
from choreo.evaluate.macpo import pgr
from choreo.evaluate.page import Section, Table
from choreo.studies.arms import Study
from choreo.studies.compare import difference, points

STUDENT, WEAK = "student+", "teacher-1+"

Rounds = Sequence[Mapping[str, Any]]  # of one run, as summary.json has them
BySeed = Sequence[Rounds]


def rounds_of(study: Study, runs: Sequence[Path]) -> BySeed:
    return [summary["rounds"] for summary in study.summaries(runs)]


def at(runs: BySeed, round: int, measure: str = "reward", policy: str = STUDENT) -> list[Estimate]:
    """A measure of an agent after a round (-1: the last), by seed."""
    return [rounds[round]["agents"][policy][measure] for rounds in runs]


def final(runs: BySeed, measure: str = "reward", policy: str = STUDENT) -> list[Estimate]:
    """A measure of an agent after the last round, by seed."""
    return at(runs, -1, measure, policy)


def gap_recovered(student: BySeed, macpo: BySeed, ceiling: BySeed) -> Estimate:
    """PGR over seeds, each against the weak teacher and the ceiling of its own seed."""
    found = []
    for rounds, weak, high in zip(student, macpo, ceiling, strict=True):
        ends = weak[0]["agents"][WEAK]["reward"]["value"], high[-1]["agents"][STUDENT]["reward"]["value"]
        value = pgr(rounds[-1]["agents"][STUDENT]["reward"]["value"], *ends)
        if value is not None:
            found.append(estimate(value, 1, value, value))
    return over_seeds(found)


def path(name: str, estimates: Sequence[Estimate], x: Sequence[float] = ()) -> plots.Line:
    """A line through estimates, over rounds 0, 1, … where no x is given."""
    ends = ([e[end] for e in estimates] for end in ("value", "low", "high"))
    return plots.Line(name, x or [float(i) for i in range(len(estimates))], *ends)


def by_round(runs: BySeed, heading: str, measure: str = "reward") -> Section:
    """Every positive agent's measure, round by round, with the changes within seeds."""
    policies = [name for name in runs[0][0]["agents"] if name.endswith("+")]
    numbers = range(min(map(len, runs)))
    rows, lines, series = [], [], []
    for policy in policies:
        found = [at(runs, number, measure, policy) for number in numbers]
        pooled = [over_seeds(estimates, 1.0) for estimates in found]
        rows.append([policy, *pooled])
        series.append(path(policy, pooled))
        steps = [points(difference(after, before)) for before, after in itertools.pairwise(found)]
        lines.append(f"{policy}, round by round: {'; '.join(steps)}.")
    figure = plots.lines(series, f"{measure.capitalize()} by round", "round", percent=True)
    columns = (measure, *("start" if number == 0 else f"round {number}" for number in numbers))
    return Section(heading, " ".join(lines), Table(columns, rows), figure)


def plain(number: Estimate) -> str | None:
    """An estimate that is no share, to two digits."""
    if number["value"] is None:
        return None
    interval = f" ({number['low']:.2f}–{number['high']:.2f})" if number["n"] > 1 else ""
    return f"{number['value']:.2f}{interval}"
