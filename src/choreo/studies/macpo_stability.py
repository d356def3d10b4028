"""`choreo study macpo-stability`: ten rounds, and ten with the paper's balance of losses."""

from __future__ import annotations

from typing import Any

from choreo.evaluation.intervals import over_seeds
from choreo.report import plots
from choreo.report.page import PageSection, Table
from choreo.studies.shared.arms import Arm, Study
from choreo.studies.shared.paired import contrast_section, contrasts
from choreo.studies.shared.rounds import BySeed, Measured, at, by_round, paired_rounds, rounds_of

# Registered (docs/studies/registered.md): five fresh seeds, of which the second arm has the first three.
SEEDS = tuple(range(70, 75))
ROUNDS, PAPERS = 10, 3  # rounds here, and in the paper
RULES = ("macpo", "macpo-published")
ALONE = ("ceiling=false", f"rounds.count={ROUNDS}")
ARMS = (Arm(RULES[0], RULES[0], ALONE), Arm(RULES[1], RULES[1], ALONE, first=3))
# The registered hypotheses, one family: what ten rounds change, and what those after the paper's last one do.
REGISTERED = tuple(
    contrast
    for rule in RULES
    for contrast in (
        *contrasts([(Measured(rule), Measured(rule, 0))], "reward", "ORR"),
        *contrasts([(Measured(rule), Measured(rule, PAPERS))], "reward"),
    )
)


def run(study: Study) -> str:
    """Trains what is missing, writes study.html, study.md and answers.json; returns the verdicts."""
    runs = study.train(ARMS)
    rounds = {rule: rounds_of(study, runs[rule]) for rule in RULES}
    intro = f"The paper ends after three rounds. Here there are {ROUNDS}, with the refusals beside the reward."
    sections = [
        _ends(rounds),
        contrast_section("From start to end, and after round 3", paired_rounds(study, runs, REGISTERED)),
    ]
    for rule in RULES:
        sections += by_round(study, runs, rule, f"Round by round: {rule}.")
    return study.write("MACPO over many rounds", intro, sections)


def _ends(rounds: dict[str, BySeed]) -> PageSection:
    rows: list[list[Any]] = []
    series = []
    for rule, runs in rounds.items():
        for measure in ("reward", "orr", "refused_benign"):
            name = measure.upper() if measure == "orr" else measure.replace("_", " ")
            pooled = [over_seeds(at(runs, number, measure), 1.0) for number in range(len(runs[0]))]
            best = max(pooled, key=lambda e: e["value"])
            rows.append([rule, name, pooled[0], pooled[PAPERS], best, pooled[-1]])
            series.append(plots.Line.through(f"{rule}: {name}", pooled))
    columns = ("student of", "measure", "start", f"round {PAPERS}", "highest", f"round {ROUNDS}")
    figure = plots.lines(series, "The student over ten rounds", "round", percent=True)
    said = "Reward and refusals of the student. The highest of many rounds is high by luck too."
    return PageSection("Does it hold?", said, Table(columns, rows), figure)
