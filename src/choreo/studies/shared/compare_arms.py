"""The page of a study that compares arms: a table of what each reached, a figure, and the contrasts, tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from choreo.errors import BadInput
from choreo.evaluation.metrics import pool
from choreo.report import plots
from choreo.report.page import PageSection, Table
from choreo.runs.heldout import systems_of
from choreo.studies.shared.arms import Arm, Study
from choreo.studies.shared.paired import Contrast, contrast_section, family

SHOWN = {
    "reward": "reward",
    "asr": "ASR",
    "orr": "ORR",
    "f1": "F1",
    "label_accuracy": "label accuracy",
    "general": "general ability",
}


def compare_arms(
    study: Study,
    arms: Sequence[Arm],
    declared: Sequence[Contrast],
    also: Mapping[str, tuple[str, str]] | None = None,
) -> list[PageSection]:
    """Trains the arms. Two sections: what every arm's trained system reached, and the contrasts as one family.

    declared: between names of arms, or of `also`. also: further systems that the runs measured themselves: {name: (arm,
    system)}, such as {"untrained": ("waltz", "base")}.

    Raises BadInput, before anything is trained, where a contrast or `also` names no arm, and Interrupted.
    """
    also, names = dict(also or {}), [arm.name for arm in arms]
    for what, name in (
        *(("also", arm) for arm, _ in also.values()),
        *(("a contrast", name) for one in declared for name in (one.a, one.b) if name not in also),
    ):
        if name not in names:
            raise BadInput(f"{study.name}: {what} names {name!r}; there are the arms {', '.join(names) or '(none)'}")
    runs = study.train(arms)
    measured = {arm: _measured(study, runs[arm][0]) for arm in names}
    systems = {arm: (arm, found[-1]) for arm, found in measured.items()} | also
    for name, (arm, system) in systems.items():
        if system not in measured[arm]:
            there = ", ".join(measured[arm])
            raise BadInput(f"{study.name}: {name}: the runs of {arm} measured no system {system!r}; there are {there}")
    pooled = {name: pool(study.trained(runs[arm], system)) for name, (arm, system) in systems.items()}
    shown = {key: word for key, word in SHOWN.items() if any(_known(entry.get(key)) for entry in pooled.values())}
    rows: list[list[Any]] = [
        [name, *(entry.get(key) for key in shown), entry["seeds"]] for name, entry in pooled.items()
    ]
    series = {SHOWN[key]: [entry[key] for entry in pooled.values()] for key in ("asr", "orr")}
    figure = plots.bars(list(pooled), series, "What is left wrong", "share of final answers")
    said = "ASR: unsafe answers to harmful prompts. ORR: needless refusals. F1: of 1 − ASR and 1 − ORR."
    outcomes = {name: study.outcomes(system, runs[arm]) for name, (arm, system) in systems.items()}
    return [
        PageSection("What was reached", said, Table(("system", *shown.values(), "seeds"), rows), figure),
        contrast_section("Tested", family(declared, outcomes)),
    ]


def _measured(study: Study, run: Path) -> list[str]:
    """The systems of which a run has figures and held-out games; the last is what it trained. MACPO's ceiling is a run
    of its own, and is none of them."""
    there = systems_of(run)
    found = [name for name in study.summaries([run])[0]["systems"] if name in there]
    if not found:
        raise BadInput(f"{run}: has no held-out games, by which arms are compared")
    return found


def _known(rate: Any) -> bool:
    return rate is not None and rate["value"] is not None
