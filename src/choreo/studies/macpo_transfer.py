"""`choreo study macpo-transfer`: another task. Everyday questions alone: arithmetic, copying, facts, plain deeds."""

from __future__ import annotations

from choreo.evaluation.intervals import over_seeds
from choreo.report import plots
from choreo.report.page import PageSection, Table
from choreo.studies.shared.arms import Arm, Study
from choreo.studies.shared.compare import compare_shares, difference, points
from choreo.studies.shared.rounds import at, final, rounds_of

NAMES = ("macpo", "naive-sft", "confident-loss", "ceiling")
ARMS = tuple(Arm(name, name, ("ceiling=false", 'data.kinds=["general"]')) for name in NAMES)


def run(study: Study) -> str:
    """Trains what is missing, writes study.html, study.md and answers.json; returns the verdicts."""
    runs = study.train(ARMS)
    rounds = {name: rounds_of(study, runs[name]) for name in NAMES}
    ours = final(rounds["macpo"], "general")
    rows = [
        [
            name,
            over_seeds(at(found, 0, "general"), 1.0),
            over_seeds(final(found, "general"), 1.0),
            points(difference(ours, final(found, "general"))),
            over_seeds(final(found), 1.0),
        ]
        for name, found in rounds.items()
    ]
    columns = ("student of", "start", "end", "MACPO minus it", "all suites, end")
    lines = [
        compare_shares("MACPO", name, ours, final(rounds[name], "general"), "general ability") for name in NAMES[1:]
    ]
    change = difference(ours, at(rounds["macpo"], 0, "general"))
    lines.append(f"From its start to its end MACPO's student changes by {points(change)}.")
    series = {"general ability": [over_seeds(final(found, "general"), 1.0) for found in rounds.values()]}
    figure = plots.bars(list(rounds), series, "General ability of the student at the end", "correct answers")
    intro = "Half A and half B hold general prompts alone; general ability is the share answered correctly on held-out."
    section = PageSection("Does it carry over?", " ".join(lines), Table(columns, rows), figure)
    return study.write("MACPO on another task", intro, [section])
