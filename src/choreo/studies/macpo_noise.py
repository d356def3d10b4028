"""`choreo study macpo-noise`: wrong labels in the teachers' half, against naive SFT and the confident loss."""

from __future__ import annotations

from choreo.evaluation.intervals import over_seeds
from choreo.report import plots
from choreo.report.page import PageSection, Table
from choreo.studies.shared.arms import Arm, Study
from choreo.studies.shared.compare import compare_shares, difference, points
from choreo.studies.shared.rounds import final, rounds_of

NOISES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
METHODS = ("macpo", "naive-sft", "confident-loss")
ARMS = tuple(
    Arm(f"{name}-{noise}", name, ("ceiling=false", f"data.noise={noise}")) for noise in NOISES for name in METHODS
)


def run(study: Study) -> str:
    """Trains what is missing, writes study.html, study.md and answers.json; returns the verdicts."""
    runs = study.train(ARMS)
    found = {(n, p): final(rounds_of(study, runs[f"{n}-{p}"])) for p in NOISES for n in METHODS}
    rows = [
        [
            f"{100 * p:.0f} %",
            *(over_seeds(found[n, p], 1.0) for n in METHODS),
            points(difference(found["macpo", p], found["macpo", NOISES[0]])),
        ]
        for p in NOISES
    ]
    columns = ("labels exchanged", *METHODS, "MACPO against itself without noise")
    lines = [
        f"At {100 * p:.0f} %: {compare_shares('MACPO', name, found['macpo', p], found[name, p], 'reward')}"
        for p in NOISES
        for name in METHODS[1:]
    ]
    series = [plots.Line.through(n, [over_seeds(found[n, p], 1.0) for p in NOISES], NOISES) for n in METHODS]
    figure = plots.lines(series, "Reward of the student as labels are exchanged", "share exchanged", percent=True)
    intro = "In a share of half A the chosen and the rejected answer change places before the teachers see them."
    section = PageSection("How much noise does each bear?", " ".join(lines), Table(columns, rows), figure)
    return study.write("MACPO under wrong labels", intro, [section])
