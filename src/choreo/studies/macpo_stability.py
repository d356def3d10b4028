"""`choreo study macpo-stability`: ten rounds, and ten with the paper's filter alone."""

from __future__ import annotations

from typing import Any

from choreo.evaluation.intervals import Estimate, over_seeds
from choreo.report import plots
from choreo.report.page import PageSection, Table
from choreo.studies.shared.arms import Arm, Study
from choreo.studies.shared.compare import difference, points
from choreo.studies.shared.rounds import BySeed, at, by_round, changes, rounds_of

ROUNDS = 10
BEYOND = 0.03  # a loss of reward that would matter
RULES = ("macpo", "macpo-filter-alone")
ALONE = ("ceiling=false", f"rounds.count={ROUNDS}")
ARMS = tuple(Arm(rule, rule, ALONE) for rule in RULES)


def run(study: Study) -> str:
    """Trains what is missing, writes study.html, study.md and answers.json; returns the verdicts."""
    runs = study.train(ARMS)
    rounds = {rule: rounds_of(study, runs[rule]) for rule in RULES}
    intro = f"The paper ends after three rounds. Here there are {ROUNDS}, with the refusals beside the reward."
    sections = [_ends(rounds), *(by_round(found, f"Round by round: {rule}") for rule, found in rounds.items())]
    return study.write("MACPO over many rounds", intro, sections)


def _ends(rounds: dict[str, BySeed]) -> PageSection:
    rows: list[list[Any]] = []
    lines, series = [], []
    for rule, runs in rounds.items():
        for measure in ("reward", "orr", "refused_benign"):
            found = [at(runs, number, measure) for number in range(len(runs[0]))]
            change, pooled = difference(found[-1], found[0]), [over_seeds(e, 1.0) for e in found]
            best = max(pooled, key=lambda e: e["value"])
            rows.append(
                [
                    rule,
                    measure.upper() if measure == "orr" else measure.replace("_", " "),
                    pooled[0],
                    pooled[3],
                    best,
                    pooled[-1],
                    points(change),
                ]
            )
            series.append(plots.Line.through(f"{rule}: {measure.replace('_', ' ')}", pooled))
            if measure != "refused_benign":
                lines.append(changes(rule, [("from start to end", found[0], found[-1])], measure))
        lines.append(f"{rule}: {_kept(difference(at(runs, -1), at(runs, 3)))}")
    columns = ("selection", "measure", "start", "round 3", "highest", f"round {ROUNDS}", "change")
    figure = plots.lines(series, "The student over ten rounds", "round", percent=True)
    return PageSection("Does it hold?", " ".join(lines), Table(columns, rows), figure)


def _kept(change: Estimate) -> str:
    """Whether reward is lost after round 3. Intervals that hold both a loss and none say neither."""
    if change["value"] is None:
        return "reward after round 3 was not measured."
    if change["high"] < 0:
        return f"reward is lost after round 3: {points(change)}."
    if change["low"] >= -BEYOND:
        return f"no loss of reward after round 3 beyond {100 * BEYOND:.0f} points: {points(change)}."
    return f"whether reward is lost after round 3 cannot be told: {points(change)}."
