"""`choreo study macpo-teachers`: how many teachers, how different, and how their negatives are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from choreo.evaluation.intervals import over_seeds
from choreo.evaluation.metrics import pool
from choreo.report import plots
from choreo.report.page import PageSection, Table, percent
from choreo.studies.shared.arms import Arm, Study
from choreo.studies.shared.compare import best
from choreo.studies.shared.rounds import STUDENT, BySeed, at, changes, final, rounds_of

TEACHERS = {
    "one": ["nano-llama"],
    "two": ["nano-llama", "nano-qwen"],
    "three": ["nano-llama", "nano-qwen", "nano-neox"],
    "three alike": ["nano-llama"] * 3,
}
NEGATIVES = ("twin", "prompt", "decoding")
ALONE = "ceiling=false"
ARMS = (
    *(Arm(name, "macpo", (ALONE, f"agents.teachers={bases}")) for name, bases in TEACHERS.items()),
    *(Arm(f"negatives-{rule}", "macpo", (ALONE, f"rounds.negatives={rule}")) for rule in NEGATIVES),
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
        _compared({name: rounds[name] for name in TEACHERS}, "How many teachers, and how different?", "teachers"),
        _compared(named, "Other ways to make negatives", "negatives"),
    ]
    return study.write("Teachers and negatives of MACPO", intro, sections)


def _compared(rounds: Mapping[str, BySeed], heading: str, what: str) -> PageSection:
    rows: list[list[Any]] = []
    lines, series = [], []
    for name, runs in rounds.items():
        found = [at(runs, number) for number in range(len(runs[0]))]
        last = pool([seed[-1]["agents"][STUDENT] for seed in runs])
        pooled = [over_seeds(e, 1.0) for e in found]
        rows.append([name, *pooled, last["orr"], last["refused_benign"]])
        series.append(plots.Line.through(name, pooled))
        steps = [("from start to end", found[0], found[-1]), ("in the last round", found[-2], found[-1])]
        lines.append(changes(name, steps, "reward"))
    numbers = range(len(next(iter(rounds.values()))[0]))
    columns = (what, *("start" if n == 0 else f"round {n}" for n in numbers), "ORR", "harmless prompts refused")
    ends = {name: over_seeds(final(runs), 1.0) for name, runs in rounds.items()}
    lines.append(best(ends, "Reward at the end", {name: percent(e) for name, e in ends.items()}))
    figure = plots.lines(series, "Reward of the student", "round", percent=True)
    return PageSection(heading, " ".join(lines), Table(columns, rows), figure)
