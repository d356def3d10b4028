"""`choreo study macpo-teachers`: how many teachers, how different, and how their negatives are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from choreo.evaluation.intervals import over_seeds
from choreo.evaluation.metrics import pool
from choreo.report import plots
from choreo.report.page import PageSection, Table
from choreo.studies.shared.arms import Arm, Study
from choreo.studies.shared.paired import Contrast, contrast_section, contrasts
from choreo.studies.shared.rounds import STUDENT, BySeed, Measured, at, paired_rounds, rounds_of

TEACHERS = {
    "one": ["weak-llama"],
    "two": ["weak-llama", "weak-qwen"],
    "three": ["weak-llama", "weak-qwen", "weak-neox"],
    "three alike": ["weak-llama"] * 3,
}
NEGATIVES = ("twin", "prompt", "decoding")
ALONE = "ceiling=false"
ARMS = (
    *(Arm(name, "macpo", (ALONE, f"agents.teachers={bases}")) for name, bases in TEACHERS.items()),
    *(Arm(f"negatives-{rule}", "macpo", (ALONE, f"rounds.negatives={rule}")) for rule in NEGATIVES),
)


def _family(pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> tuple[Contrast, ...]:
    """Rewards at the end of pairs of arms; and of every arm, what all rounds changed, and what the last one did."""
    ends = [(Measured(a), Measured(b)) for a, b in pairs]
    own = [(Measured(name), Measured(name, before)) for name in names for before in (0, -2)]
    return contrasts([*ends, *own], "reward")


OF_TEACHERS = _family((("two", "one"), ("three", "one"), ("three", "two"), ("three", "three alike")), tuple(TEACHERS))
OF_NEGATIVES = _family(
    (("negatives-prompt", "negatives-twin"), ("negatives-decoding", "negatives-twin")),
    tuple(f"negatives-{rule}" for rule in NEGATIVES),
)


def run(study: Study) -> str:
    """Trains what is missing, writes study.html, study.md and answers.json; returns the verdicts."""
    runs = study.train(ARMS)
    rounds = {arm.name: rounds_of(study, runs[arm.name]) for arm in ARMS}
    intro = (
        "The paper has one teacher degrade after its second round and three improve over all of them; three teachers "
        "of one base tell number from difference. Its authors leave open whether negatives can be had without a twin."
    )
    named = {f"negatives: {rule}": rounds[f"negatives-{rule}"] for rule in NEGATIVES}
    sections = [
        _rewards({name: rounds[name] for name in TEACHERS}, "How many teachers, and how different?", "teachers"),
        contrast_section("Teachers, tested", paired_rounds(study, runs, OF_TEACHERS)),
        _rewards(named, "Other ways to make negatives", "negatives"),
        contrast_section("Negatives, tested", paired_rounds(study, runs, OF_NEGATIVES)),
    ]
    return study.write("Teachers and negatives of MACPO", intro, sections)


def _rewards(rounds: Mapping[str, BySeed], heading: str, what: str) -> PageSection:
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
