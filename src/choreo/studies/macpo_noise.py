"""`choreo study macpo-noise`: wrong labels in the teachers' half, against naive SFT and the confident loss."""

from __future__ import annotations

from choreo.evaluation.intervals import over_seeds
from choreo.report import plots
from choreo.report.page import PageSection, Table
from choreo.studies.shared.arms import Arm, Study
from choreo.studies.shared.paired import contrast_section, contrasts
from choreo.studies.shared.rounds import Measured, final, paired_rounds, rounds_of

# Registered (docs/studies/registered.md): the seeds of macpo-table.
SEEDS = tuple(range(60, 65))
NOISES = (0.0, 0.1, 0.3, 0.5)
METHODS = ("macpo", "naive-sft", "confident-loss")
ARMS = tuple(
    Arm(f"{name}-{noise}", name, ("ceiling=false", f"data.noise={noise}")) for noise in NOISES for name in METHODS
)
# The registered hypotheses, one family: MACPO against the others at every share of exchanged labels, and against itself
# without any.
REGISTERED = contrasts(
    [
        *((Measured(f"macpo-{p}"), Measured(f"{name}-{p}")) for p in NOISES[1:] for name in METHODS[1:]),
        *((Measured(f"macpo-{p}"), Measured(f"macpo-{NOISES[0]}")) for p in NOISES[1:]),
    ],
    "reward",
)


def run(study: Study) -> str:
    """Trains what is missing, writes study.html, study.md and answers.json; returns the verdicts."""
    runs = study.train(ARMS)
    found = {(n, p): final(rounds_of(study, runs[f"{n}-{p}"])) for p in NOISES for n in METHODS}
    rows = [[f"{100 * p:.0f} %", *(over_seeds(found[n, p], 1.0) for n in METHODS)] for p in NOISES]
    series = [plots.Line.through(n, [over_seeds(found[n, p], 1.0) for p in NOISES], NOISES) for n in METHODS]
    figure = plots.lines(series, "Reward of the student as labels are exchanged", "share exchanged", percent=True)
    said = "What the student's reward is at the end, by the share of labels that were exchanged."
    sections = [
        PageSection("How much noise does each bear?", said, Table(("labels exchanged", *METHODS), rows), figure),
        contrast_section(
            "MACPO against the others, and against itself without noise", paired_rounds(study, runs, REGISTERED)
        ),
    ]
    intro = (
        "The chosen and the rejected answer of a share of the labelled prompts change places before the teachers see "
        "them."
    )
    return study.write("MACPO under wrong labels", intro, sections)
