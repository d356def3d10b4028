"""What the MACPO studies share: from the rounds of several seeds to estimates, contrasts and sections."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from choreo.errors import BadInput
from choreo.evaluation.intervals import Estimate, estimate, over_seeds
from choreo.evaluation.metrics import pool
from choreo.evaluation.paired import Tables
from choreo.files import durable
from choreo.methods.macpo.measure import pgr
from choreo.report import plots
from choreo.report.page import PageSection, Table
from choreo.studies.shared.arms import Runs, Study
from choreo.studies.shared.paired import Contrast, Family, contrast_section, contrasts, family

STUDENT, WEAK = "student+", "teacher-1+"
OF_TEACHER = "taken/teacher-"  # in metrics.jsonl, once a round

Rounds = Sequence[Mapping[str, Any]]  # of one run, as in its summary.json
BySeed = Sequence[Rounds]  # one run per seed, in the order of the study's seeds


@dataclass(frozen=True, slots=True)
class Measured:
    """A system of MACPO's contrasts: one policy of an arm after a round (0: the start, -1: the last, and so on)."""

    arm: str
    round: int = -1
    policy: str = STUDENT

    def __str__(self) -> str:
        whose = self.arm if self.policy == STUDENT else f"{self.arm}, {self.policy}"
        when = {0: " at the start", -1: "", -2: " before the last round"}
        return whose + when.get(self.round, f" after round {self.round}")


def outcomes_of(study: Study, runs: Runs, system: Measured) -> list[Tables]:
    """The outcomes of a system, one table per seed. runs: by arm. Raises BadInput where a run lacks its games."""
    last = len(rounds_of(study, runs[system.arm])[0]) - 1
    number = system.round if system.round >= 0 else last + 1 + system.round
    return study.outcomes(system.policy, runs[system.arm], number)


def paired_rounds(study: Study, runs: Runs, declared: Sequence[Contrast]) -> Family:
    """The family of contrasts between `Measured` systems. runs: by arm. Raises BadInput where a run lacks its games."""
    systems = {system for contrast in declared for system in (contrast.a, contrast.b) if isinstance(system, Measured)}
    return family(declared, {system: outcomes_of(study, runs, system) for system in systems})


def rounds_of(study: Study, runs: Sequence[Path]) -> BySeed:
    """The rounds of every run. Raises BadInput where runs stopped after different rounds: they are pooled by round."""
    found = [summary["rounds"] for summary in study.summaries(runs)]
    ends = {len(rounds) - 1 for rounds in found}
    if len(ends) > 1:
        raise BadInput(
            f"{runs[0].parent}: {', '.join(run.name for run in runs)} end after different rounds "
            f"({', '.join(map(str, sorted(ends)))}); run the study without watch.stop"
        )
    return found


def at(runs: BySeed, round: int, measure: str = "reward", policy: str = STUDENT) -> list[Estimate]:
    """A measure of one agent after a round (0: the start, -1: the last), by seed."""
    return [rounds[round]["agents"][policy][measure] for rounds in runs]


def final(runs: BySeed, measure: str = "reward") -> list[Estimate]:
    """A measure of the student after the last round, by seed."""
    return at(runs, -1, measure)


def gap_recovered(student: BySeed, macpo: BySeed, ceiling: BySeed, weak: str = WEAK) -> Estimate:
    """The performance gap recovered (PGR), mean over seeds.

    A seed's gap is from a teacher of MACPO at its start (`weak`) to the ceiling, both of that seed. Its interval
    follows from those of the three rewards, as independent errors (first order). Seeds without a gap are not in n.
    """
    found = []
    for rounds, teachers, high in zip(student, macpo, ceiling, strict=True):
        ends = [rounds[-1]["agents"][STUDENT], teachers[0]["agents"][weak], high[-1]["agents"][STUDENT]]
        s, w, c = (end["reward"] for end in ends)
        value = pgr(s["value"], w["value"], c["value"])
        if value is not None:
            errors = [(e["high"] - e["low"]) / 2 for e in (s, w, c)]
            wide = math.hypot(errors[0], (1 - value) * errors[1], value * errors[2]) / (c["value"] - w["value"])
            found.append(estimate(value, 1, value - wide, value + wide))
    return over_seeds(found, floor=-math.inf)


def of_seeds(gap: Estimate, runs: BySeed) -> str | None:
    """A PGR as text, with the number of seeds it is a mean of where some had no gap."""
    return two_digits(gap) if gap["n"] in (0, len(runs)) else f"{two_digits(gap)}, {gap['n']} of {len(runs)} seeds"


def best_teacher(macpo: BySeed) -> str:
    """The teacher whose mean reward at the start is the highest."""
    teachers = [name for name in macpo[0][0]["agents"] if name.startswith("teacher-") and name.endswith("+")]
    return max(teachers, key=lambda name: sum(rounds[0]["agents"][name]["reward"]["value"] for rounds in macpo))


def by_round(study: Study, runs: Runs, arm: str, heading: str) -> list[PageSection]:
    """Every positive agent's reward, round by round, and the table of its changes: one family."""
    rounds = rounds_of(study, runs[arm])
    policies = [name for name in rounds[0][0]["agents"] if name.endswith("+")]
    numbers = range(len(rounds[0]))
    rows, series = [], []
    for policy in policies:
        pooled = [over_seeds(at(rounds, number, "reward", policy), 1.0) for number in numbers]
        rows.append([policy, *pooled])
        series.append(plots.Line.through(policy, pooled))
    found = paired_rounds(study, runs, changes(arm, policies, len(numbers) - 1))
    figure = plots.lines(series, "Reward by round", "round", percent=True)
    columns = ("reward", *("start" if number == 0 else f"round {number}" for number in numbers))
    return [
        PageSection(heading, "The changes are tested in the next table.", Table(columns, rows), figure),
        contrast_section(f"{heading} The changes, tested", found),
    ]


def changes(arm: str, policies: Sequence[str], last: int) -> tuple[Contrast, ...]:
    """Reward after each round against before it, and at the end against the start, of every policy."""
    steps = [(number, number - 1) for number in range(1, last + 1)] + ([(last, 0)] if last > 1 else [])
    return tuple(
        Contrast(Measured(arm, after, policy), Measured(arm, before, policy), "reward")
        for policy in policies
        for after, before in steps
    )


def ways_compared(pairs: Sequence[tuple[str, str]], arms: Iterable[str]) -> tuple[Contrast, ...]:
    """A family about rewards: at the end of each pair of arms; and of every arm, all rounds and the last one alone."""
    ends = [(Measured(a), Measured(b)) for a, b in pairs]
    own = [(Measured(arm), Measured(arm, before)) for arm in arms for before in (0, -2)]
    return contrasts([*ends, *own], "reward")


def rewards_by_arm(rounds: Mapping[str, BySeed], heading: str, what: str) -> PageSection:
    """The student's reward round by round, and its refusals at the end, of several arms. what: how arms differ."""
    rows: list[list[Any]] = []
    series = []
    for name, runs in rounds.items():
        last = pool([seed[-1]["agents"][STUDENT] for seed in runs])
        pooled = [over_seeds(at(runs, number), 1.0) for number in range(len(runs[0]))]
        rows.append([name, *pooled, last["orr"], last["refused_benign"]])
        series.append(plots.Line.through(name, pooled))
    numbers = range(len(next(iter(rounds.values()))[0]))
    columns = (what, *("start" if n == 0 else f"round {n}" for n in numbers), "ORR", "harmless prompts refused")
    figure = plots.lines(series, "Reward of the student", "round", percent=True)
    said = "The student's reward round by round; the differences are tested in the next table."
    return PageSection(heading, said, Table(columns, rows), figure)


def two_digits(number: Estimate) -> str | None:
    """An estimate that is not a share as text, to two digits; None where nothing was measured."""
    if number["value"] is None:
        return None
    interval = f" ({number['low']:.2f} to {number['high']:.2f})" if number["low"] < number["high"] else ""
    return f"{number['value']:.2f}{interval}"


def shares_taken(runs: Sequence[Path]) -> list[dict[int, dict[str, float]]]:
    """By run and by round, the share of the student's positives that each teacher wrote, of what its filter took.

    {round: {"teacher-1": share}}; empty where a run's student takes no answers of teachers.
    """
    found = []
    for run in runs:
        shares = [
            (line["round"], {name.removeprefix("taken/"): line[name] for name in line if name.startswith(OF_TEACHER)})
            for line in durable.read_lines(run / "metrics.jsonl")
        ]
        found.append({number: own for number, own in shares if own})
    return found


def whose(runs: Sequence[Path], rounds: BySeed) -> PageSection:
    """Which teachers the student's filter takes its positives from, round by round, beside their rewards.

    The student was started on the first teacher's answers, so a filter by its perplexity may only confirm that one.
    """
    shares = shares_taken(runs)
    rows: list[list[Any]] = []
    for number in sorted({number for run in shares for number in run}):
        for teacher in shares[0].get(number, {}):
            each = [run[number][teacher] for run in shares if number in run]
            share = over_seeds([estimate(value, 1, value, value) for value in each], 1.0)
            rows.append([number, teacher, share, over_seeds(at(rounds, number - 1, policy=f"{teacher}+"), 1.0)])
    first = [run[min(run)]["teacher-1"] for run in shares if run]
    last = [run[max(run)]["teacher-1"] for run in shares if run]
    said = "The student's positives are not of teachers."
    if first:
        teachers = len(next(iter(shares[0].values())))
        said = (
            f"The student was started on the first teacher's answers. Of what it takes, that teacher wrote "
            f"{sum(first) / len(first):.0%} in the first round and {sum(last) / len(last):.0%} in the last (mean over "
            f"seeds); a filter that does not look would take {1 / teachers:.0%} from each."
        )
    columns = ("round", "teacher", "share of what is taken", "its reward after the round before")
    return PageSection("Whose answers does the filter take?", said, Table(columns, rows))
