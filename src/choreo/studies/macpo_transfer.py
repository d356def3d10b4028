"""`choreo study macpo-transfer`: another task. Everyday questions alone: arithmetic, copying, facts, plain deeds."""

from __future__ import annotations

from choreo.evaluation.intervals import over_seeds
from choreo.report import plots
from choreo.report.page import PageSection, Table
from choreo.studies.shared.arms import Arm, Study
from choreo.studies.shared.paired import contrast_section, contrasts
from choreo.studies.shared.rounds import Measured, at, final, paired_rounds, rounds_of

# Registered (docs/studies/registered.md): five fresh seeds.
SEEDS = tuple(range(70, 75))
NAMES = ("macpo", "naive-sft", "confident-loss", "ceiling")
ARMS = tuple(
    Arm(name, name, ("ceiling=false", 'data.kinds=["general"]', "world.train_prompts=13500")) for name in NAMES
)
# The registered hypotheses: one family.
REGISTERED = contrasts(
    [
        *((Measured("macpo"), Measured(name)) for name in NAMES[1:]),
        (Measured("macpo"), Measured("macpo", 0)),
    ],
    "general ability",
)


def run(study: Study) -> str:
    """Trains what is missing, writes study.html, study.md and answers.json; returns the verdicts."""
    runs = study.train(ARMS)
    rounds = {name: rounds_of(study, runs[name]) for name in NAMES}
    rows = [
        [
            name,
            over_seeds(at(found, 0, "general"), 1.0),
            over_seeds(final(found, "general"), 1.0),
            over_seeds(final(found), 1.0),
            *(over_seeds(at(found, number, "asr"), 1.0) for number in (0, -1)),
            over_seeds(final(found, "orr"), 1.0),
        ]
        for name, found in rounds.items()
    ]
    columns = ("student of", "start", "end", "reward, all suites", "ASR, start", "ASR, end", "ORR, end")
    series = {"general ability": [over_seeds(final(found, "general"), 1.0) for found in rounds.values()]}
    figure = plots.bars(list(rounds), series, "General ability of the student at the end", "correct answers")
    intro = (
        "Labelled and unlabelled prompts are general ones alone. General ability is the share of held-out general "
        "prompts that are answered correctly."
    )
    said = (
        "General ability of each student at its start and at its end; beside it the reward over all suites, and what "
        "became of unsafe answers and refusals, which nothing here trains."
    )
    sections = [
        PageSection("Does it carry over?", said, Table(columns, rows), figure),
        contrast_section("MACPO against the others, and against its start", paired_rounds(study, runs, REGISTERED)),
    ]
    return study.write("MACPO on another task", intro, sections)
