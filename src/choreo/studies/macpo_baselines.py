"""`choreo study macpo-baselines`: MACPO against other ways to learn from a weak teacher, with as many updates."""

from __future__ import annotations

from typing import Any

from choreo.evaluation.metrics import pool
from choreo.report.page import PageSection, Table
from choreo.studies.shared.arms import Arm, Study
from choreo.studies.shared.paired import contrast_section, contrasts
from choreo.studies.shared.rounds import STUDENT, Measured, paired_rounds, rounds_of

# Registered (docs/studies/registered.md): the seeds of macpo-table.
SEEDS = tuple(range(60, 65))
BASELINES = ("confident-loss", "spin", "spin-with-likelihood", "self-rewarding")
ALONE = ("ceiling=false",)
ARMS = (
    *(Arm(name, name, ALONE) for name in ("macpo", *BASELINES) if name != "spin-with-likelihood"),
    Arm("spin-with-likelihood", "spin", (*ALONE, "rounds.sft=5.0")),
)
# The registered hypotheses: one family.
REGISTERED = contrasts([(Measured("macpo"), Measured(name)) for name in BASELINES], "reward")


def run(study: Study) -> str:
    """Trains what is missing, writes study.html, study.md and answers.json; returns the verdicts."""
    runs = study.train(ARMS)
    intro = (
        "The paper's baselines in the microworld, with MACPO's rates and at most as many updates of the student: the "
        "confident loss (Burns et al. 2023), SPIN with and without MACPO's likelihood, and self-rewarding. Naive SFT "
        "is in `choreo study macpo-table`."
    )
    rows: list[list[Any]] = []
    for arm in ARMS:
        last = pool([seed[-1]["agents"][STUDENT] for seed in rounds_of(study, runs[arm.name])])
        rows.append([arm.name, last["reward"], last["asr"], last["orr"], last["general"]])
    columns = ("student of", "reward", "ASR", "ORR", "general ability")
    sections = [
        PageSection("The baselines", "Reward and refusals of each student at the end.", Table(columns, rows)),
        contrast_section("The hypotheses, as registered", paired_rounds(study, runs, REGISTERED)),
    ]
    return study.write("MACPO's baselines in the microworld", intro, sections)
